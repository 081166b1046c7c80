"""Classification: one class for each image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta

from medserve.spec import ModelSpec
from medserve.tasks.options import Options

__all__ = ["EXPLAINED_PER_CALL", "ClassificationOptions"]

# Each costs as much as a large batch of plain images, so a call may not ask for many.
EXPLAINED_PER_CALL = 8


class ClassificationOptions(Options, frozen=True, kw_only=True):
    """What a caller may ask of a classifier."""

    top_k: Annotated[int | None, Meta(description="Classes in `top`, most probable first.")] = None
    explain: Annotated[
        bool,
        Meta(
            description="Also a heat map of what each class rests on; takes 131 rows of the "
            "network for an image instead of one."
        ),
    ] = False

    @classmethod
    def bounds(cls, spec: ModelSpec) -> Mapping[str, Mapping[str, Any]]:
        """Let no more classes be asked for than the model has."""
        return {"top_k": {"least": 1, "most": len(spec.labels)}}

    def filled(self, spec: ModelSpec) -> Self:
        """Fill the number of classes that the model shows."""
        top_k = min(spec.classifier.top_k, len(spec.labels)) if self.top_k is None else self.top_k
        return msgspec.structs.replace(self, top_k=top_k)
