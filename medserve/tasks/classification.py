"""Classification: one class for each image."""

from __future__ import annotations

from typing import Annotated, Self

import msgspec
from msgspec import Meta

from medserve.errors import InvalidRequestError
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

    def for_model(self, spec: ModelSpec) -> Self:
        """Fill what the caller left out, and refuse what the model cannot do."""
        largest = len(spec.labels)
        top_k = min(spec.classifier.top_k, largest) if self.top_k is None else self.top_k
        if not 1 <= top_k <= largest:
            raise InvalidRequestError(
                f"params: top_k: expected a whole number from 1 to {largest}, got something else"
            )
        return msgspec.structs.replace(self, top_k=top_k)
