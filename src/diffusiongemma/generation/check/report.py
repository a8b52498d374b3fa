"""What a check found: rows of one thing each."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Report", "Row", "Verdict", "listed"]

Verdict = Literal["agrees", "differs", "damaged", "not checked", "not applicable"]


@dataclass(frozen=True)
class Row:
    """One thing that was compared, or could not be.

    Attributes:
        what: the thing.
        verdict: ``agrees``; ``differs`` or ``damaged``: something is wrong; ``not checked``: it could not be, ``detail`` says why;
            ``not applicable``: it is published for another model.
        detail: the numbers, or the reason.
    """

    what: str
    verdict: Verdict
    detail: str


@dataclass
class Report:
    """All rows of a check.

    Attributes:
        model: as it was named.
        format: how the weights are stored; None where config.json could not be read.
        published: whether config.json describes the released 26B.
        rows: in the order in which they were found.
    """

    model: str
    format: str | None = None
    published: bool = False
    rows: list[Row] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether nothing disagrees."""
        return all(row.verdict not in ("differs", "damaged") for row in self.rows)

    def add(self, what: str, verdict: Verdict, detail: str) -> None:
        """One more row."""
        self.rows.append(Row(what, verdict, detail))

    def take(self, rows: Iterator[Row]) -> None:
        """More rows, as they come."""
        self.rows.extend(rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "format": self.format,
            "published": self.published,
            "agrees": self.agrees,
            "rows": [asdict(row) for row in self.rows],
        }


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(name[:120] for name in sorted(names)[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
