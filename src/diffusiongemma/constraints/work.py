"""How much a search may do. What counts is work and not time, so that an answer does not depend on how busy the machine is."""

from dataclasses import dataclass

__all__ = ["PLAN_WORK", "STEP_WORK", "UNLIMITED", "Exhausted", "Work"]

STEP_WORK = 5_000
"""Texts that all searches of one step of an answer may look at, some 40 microseconds each. On the schemas of the tests 99.9% of the
searches for an ending look at fewer than 3,100."""

PLAN_WORK = 40_000
"""The same for the search for a way through pins, before an answer begins."""


class Exhausted(Exception):  # noqa: N818 - it is no error: a search that gets it has found nothing
    """There is no work left."""


@dataclass(eq=False)
class Work:
    """What is left to do for some searches together.

    Attributes:
        left: texts that may still be looked at; below 0: there is no limit.
    """

    left: int

    def spend(self) -> None:
        """Look at one text.

        Raises:
            Exhausted: there is no work left.
        """
        if self.left == 0:
            raise Exhausted
        self.left -= 1


UNLIMITED = Work(-1)
