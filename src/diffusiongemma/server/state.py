"""What changes while the server runs."""

from dataclasses import dataclass

from diffusiongemma.server.endpoint import ModelEndpoint

__all__ = ["State"]


@dataclass
class State:
    """Shared by the gate, the handlers and the process around them.

    Attributes:
        models: by name; the first is the default.
        draining: no more requests are taken.
        active: requests that generate.
        receiving: bytes of bodies that are on their way or worked on.
    """

    models: dict[str, ModelEndpoint]
    draining: bool = False
    active: int = 0
    receiving: int = 0

    @property
    def failure(self) -> str | None:
        """Why an engine cannot go on; None: all can."""
        return next((stats.failure for endpoint in self.models.values() if (stats := endpoint.engine.stats).failure), None)
