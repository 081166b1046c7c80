"""What a class rests on: the part of an answer that shows where in the image its evidence lies."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medserve.errors import ServerFailedError

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """How much each place of an image speaks for one class.

    Attributes:
        label: The class that is explained.
        without_warmest: Its probability with the quarter of the image covered that speaks most
            for it.
        without_coolest: The same with the quarter that speaks least. Where the two are alike the
            map tells nothing.
        full_colour: What a pixel of full colour adds to its log-odds, in nats.
        heatmap_png: Picture of the input's own size, clear where nothing speaks; see
            `medserve.results.files.heatmap`.
        method: How it was found.
    """

    label: str
    without_warmest: float
    without_coolest: float
    full_colour: float
    heatmap_png: bytes = field(repr=False)
    method: str = "occlusion"

    def to_json(self) -> dict[str, Any]:
        """The member `explanation` of a JSON answer."""
        return {
            "method": self.method,
            "label": self.label,
            "without_warmest": self.without_warmest,
            "without_coolest": self.without_coolest,
            "full_colour": self.full_colour,
            "heatmap_png": base64.b64encode(self.heatmap_png).decode("ascii"),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Explanation:
        """Read it back; ServerFailedError where it is something else."""
        try:
            return cls(
                label=str(content["label"]),
                without_warmest=float(content["without_warmest"]),
                without_coolest=float(content["without_coolest"]),
                full_colour=float(content["full_colour"]),
                heatmap_png=base64.b64decode(content["heatmap_png"], validate=True),
                method=str(content["method"]),
            )
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ServerFailedError("expected an explanation from the server, got none") from error
