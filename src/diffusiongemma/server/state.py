"""What changes while the server runs."""

from dataclasses import dataclass

from diffusiongemma.server.served import Served

__all__ = ["State"]


@dataclass
class State:
    """Shared by the gate, the handlers and the process around them.

    Attributes:
        models: by name; the first is the default.
        draining: no more requests are taken.
        active: requests that generate.
    """

    models: dict[str, Served]
    draining: bool = False
    active: int = 0
