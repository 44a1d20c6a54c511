"""What is wrong with a manifest, or with another input: field, rule, remedy."""

from __future__ import annotations

from collections.abc import Sequence

from forkcast_wire.echo import one_line


class ManifestError(ValueError):
    """One fault, in one line; ``others`` are the further faults of the same manifest."""

    def __init__(
        self, field: str, rule: str, remedy: str, others: Sequence[ManifestError] = ()
    ) -> None:
        self.field, self.rule, self.remedy = field, rule, remedy
        self.others = tuple(others)
        super().__init__(one_line(f"{field}: {rule}; {remedy}"))

    def lines(self) -> list[str]:
        """Every fault, one a line."""
        return [str(self), *(line for one in self.others for line in one.lines())]
