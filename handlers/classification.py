"""Classifiers of single images; how a model wants its pixels stands in its spec.

Images share calls of the engine with all others of their batch. One whose class is to be explained
takes its own: it is covered in many ways (`medserve.inference.occlusion`), after the plain images
of its batch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from handlers import torchserve
from handlers.deadline import Deadline
from handlers.images import ImageHandler
from handlers.items import Item, errors_to, refuse_expired
from handlers.request import Inputs
from medserve.errors import (
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
)
from medserve.imaging import Image
from medserve.inference.engines import Outputs
from medserve.inference.fit import Box, Region, middle_of, place_image
from medserve.inference.occlusion import Occlusion, occlude
from medserve.inference.scores import as_logits, classified, threshold_logits
from medserve.results.files import heatmap
from medserve.tasks.classification import (
    EXPLAINED_PER_CALL,
    Classification,
    ClassificationOptions,
    Explanation,
)

__all__ = ["ClassificationHandler"]

# Of the time after which TorchServe kills a worker; the other half is for the plain images.
_SHARE_FOR_EXPLANATIONS = 0.5


class ClassificationHandler(ImageHandler[ClassificationOptions, Classification]):
    """Image -> Classification; a model's own handler adds only its name."""

    def handle(self, data: Sequence[Inputs], context: torchserve.WorkerContext) -> list[bytes]:
        """Answer a gathered batch; its explanations share one span of time."""
        limit_s = _SHARE_FOR_EXPLANATIONS * self.spec.serving.response_timeout
        self._explain_until = time.monotonic() + limit_s
        return super().handle(data, context)

    def answer(self, items: Sequence[Item[ClassificationOptions]]) -> None:
        """Plain images at once, then one by one those whose class is to be explained."""
        super().answer([item for item in items if not item.params.explain])
        for item in items:
            if item.params.explain:
                with errors_to(item):
                    _refuse_too_many(item)
                    refuse_expired(item.request)
                    item.outcome = self.encode(self.explain(item), item.params)

    def from_network(self, outputs: Outputs) -> Classification:
        """Scores (K,) and, where the model tells it, novelty () -> probabilities and two flags."""
        return classified(self._as_logits(outputs), self.spec)

    def _as_logits(self, outputs: Outputs) -> Outputs:
        return {**outputs, "logits": as_logits(outputs["logits"], self.spec.classifier)}

    def encode(self, result: Classification, params: ClassificationOptions) -> bytes:
        """A JSON object with the members of `Classification.to_json`."""
        assert params.top_k is not None  # `filled` saw to it
        return json.dumps(result.to_json(params.top_k), separators=(",", ":")).encode()

    # ---- with a heat map

    def explain(self, item: Item[ClassificationOptions]) -> Classification:
        """One file -> its class and what that rests on, in many calls of the engine."""
        left_s = self._explain_until - time.monotonic()
        if left_s <= 0:
            raise ServerBusyError(
                "expected a batch with fewer explanations, got one whose others took all of their "
                "time; ask again"
            )
        watch = Deadline(item.request, left_s, tell=None)
        source = self.decode(item.payload)
        shape = (source.height, source.width)
        row, box, region = self.to_network(source), self.place(source), self.region(source)
        del source  # not beside the copies of its row
        found = occlude(
            *(row, box, lambda rows: self._as_logits(self.infer(rows)), watch.check),
            threshold_logits(self.spec),
        )
        result = classified({name: array[0] for name, array in found.outputs.items()}, self.spec)
        return replace(result, explanation=_explanation(result, found, shape, region))

    def place(self, source: Image) -> Box:
        """Where an image lies on the network's plane; as `to_network` puts it."""
        return place_image(source, self.spec.input)

    def region(self, source: Image) -> Region | None:
        """The part of an image that fills the network's plane; None where all of it is seen."""
        return middle_of(source, self.spec.input)

    def check_outputs(self, outputs: Outputs) -> None:
        """One score per label and one novelty per image, or the artifact is another model's."""
        expected: dict[str, tuple[int, ...]] = {"logits": (1, len(self.spec.labels))}
        if self.spec.classifier.novelty:
            expected["novelty"] = (1,)
        got = {name: outputs[name].shape for name in expected if name in outputs}
        if got != expected:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected outputs {expected} for one image and "
                f"{len(self.spec.labels)} labels, got {got}; the artifact belongs to another model"
            )


def _refuse_too_many(item: Item[ClassificationOptions]) -> None:
    files = len(item.request.payloads)
    if files > EXPLAINED_PER_CALL:
        raise PayloadTooLargeError(
            f"expected at most {EXPLAINED_PER_CALL} files a call to explain, got {files}; "
            "send them in several calls, or leave explain out"
        )


def _explanation(
    result: Classification, found: Occlusion, shape: tuple[int, int], region: Region | None
) -> Explanation:
    if not np.isfinite(found.evidence).all():
        raise ServerFailedError("the network gave a number that is not finite for a covered image")
    return Explanation(
        label=result.labels[found.label_id],
        without_warmest=_probability(found.without_warmest),
        without_coolest=_probability(found.without_coolest),
        full_colour=heatmap.full_colour(found.evidence),
        heatmap_png=heatmap.encode(found.evidence, shape, region),
    )


def _probability(log_odds: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -log_odds)))
