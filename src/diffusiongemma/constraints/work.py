"""How much a search may do. What counts is work and not time, so that an answer does not depend on how busy the machine is."""

import time
from dataclasses import dataclass, field

from diffusiongemma.errors import ConstraintError

__all__ = ["PLAN_WORK", "STEP_WORK", "UNLIMITED", "Exhausted", "Work"]

STEP_WORK = 5_000
"""Texts that all searches of one step of an answer may look at, some 40 microseconds each. On the schemas of the tests 99.9% of the
searches for an ending look at fewer than 3,100."""

PLAN_WORK = 40_000
"""The same for the search for a way through pins, before an answer begins."""


_SECONDS = 2.0
"""Processor time for the searches of a step, twice as much before the first. It is no part of an answer: beyond it is an error."""
_LOOKED = 64
"""Texts between two looks at the clock."""


class Exhausted(Exception):  # noqa: N818 - it is no error: a search that gets it has found nothing
    """There is no work left."""


@dataclass(eq=False)
class Work:
    """What is left to do for some searches together.

    Attributes:
        left: texts that may still be looked at; below 0: there is no limit.
    """

    left: int
    _until: float = field(default=0.0, repr=False)

    def begin(self, left: int) -> None:
        """From now on so much may be done."""
        self.left, self._until = left, time.thread_time() + _SECONDS * (1 + (left > STEP_WORK))

    def spend(self) -> None:
        """Look at one text.

        Raises:
            Exhausted: there is no work left.
            ConstraintError: so few took so long that others would wait.
        """
        if self.left == 0:
            raise Exhausted
        self.left -= 1
        if self.left % _LOOKED == 0 and 0.0 < self._until < time.thread_time():
            raise ConstraintError(
                f"a search in the constraint took more than {_SECONDS:g} s of processor time in a step; make the constraint smaller"
            )


UNLIMITED = Work(-1)
