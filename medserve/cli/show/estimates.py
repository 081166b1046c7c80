"""Numbers of images: what a line of JSON, a row of a table and the terminal tell of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from medserve.cli.show.images import ImageRecord
from medserve.client import Regression

__all__ = ["EstimateRecord"]


@dataclass(frozen=True)
class EstimateRecord(ImageRecord[Regression]):
    """The numbers of one input, each in its unit."""

    heading: ClassVar[tuple[str, str]] = ("value", "number")
    columns: ClassVar[tuple[str, ...]] = ("review", "doubts")

    def members(self) -> dict[str, Any]:
        """Return the numbers and whether a person should look."""
        answer = self.result.result
        return dict.fromkeys(("values", "review")) if answer is None else answer.to_json()

    def row(self) -> dict[str, Any]:
        """Return a cell for each number, its unit in the name of the column, and the doubts."""
        answer = self.result.result
        if answer is None:
            return {}
        cells = {f"{each.name} ({each.unit})": each.value for each in answer.values}
        return cells | {"doubts": "; ".join(answer.doubts)}

    def told(self, answer: Regression) -> tuple[list[tuple[str, str]], list[str]]:
        """Return name and number with its unit, and the doubts."""
        lines = [(each.name, each.shown) for each in answer.values]
        return lines, list(answer.doubts)
