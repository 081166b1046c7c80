"""Classifiers of single images; how a model wants its pixels stands in its spec.

Images share calls of the engine with all others of their batch. One whose class is to be explained
takes its own: it is covered in many ways (`medserve.inference.occlusion`), after the plain images
of its batch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from handlers import torchserve
from handlers.batched import BatchedHandler
from handlers.deadline import Deadline
from handlers.items import Item, errors_to, refuse_expired
from handlers.params import flag, refuse_unknown
from handlers.request import Inputs
from medserve.errors import (
    InvalidRequestError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
)
from medserve.imaging import Image
from medserve.imaging.codecs import sniff
from medserve.imaging.codecs.payload import Payload
from medserve.inference.engines import Outputs
from medserve.inference.fit import Box, fit_image, fitted_box
from medserve.inference.occlusion import Occlusion, occlude
from medserve.results.classification import Classification
from medserve.results.explanation import EXPLAINED_PER_CALL, Explanation
from medserve.results.files import heatmap

__all__ = ["ClassificationHandler", "ClassifierParams"]

# Of the time after which TorchServe kills a worker; the other half is for the plain images.
_SHARE_FOR_EXPLANATIONS = 0.5


@dataclass(frozen=True)
class ClassifierParams:
    """What a caller may ask of a classifier."""

    top_k: int  # labels in the answer's `top`, most probable first
    explain: bool = False  # with a heat map of what the class rests on


class ClassificationHandler(BatchedHandler[Image, ClassifierParams, Classification]):
    """Image -> Classification; a model's own handler adds only its name."""

    def parse_params(self, params: Mapping[str, object]) -> ClassifierParams:
        """Known keys: top_k, 1 to the number of labels; explain, true or false."""
        refuse_unknown(params, ("top_k", "explain"))
        largest = len(self.spec.labels)
        top_k = params.get("top_k", min(self.spec.output.top_k, largest))
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= largest:
            raise InvalidRequestError(
                f"params: top_k: expected a whole number from 1 to {largest}, got something else"
            )
        return ClassifierParams(top_k, explain=flag(params, "explain", False))

    def handle(self, data: Sequence[Inputs], context: torchserve.WorkerContext) -> list[bytes]:
        """Answer a gathered batch; its explanations share one span of time."""
        limit_s = _SHARE_FOR_EXPLANATIONS * self.spec.serving.response_timeout
        self._explain_until = time.monotonic() + limit_s
        return super().handle(data, context)

    def answer(self, items: Sequence[Item[ClassifierParams]]) -> None:
        """Plain images at once, then one by one those whose class is to be explained."""
        super().answer([item for item in items if not item.params.explain])
        for item in items:
            if item.params.explain:
                with errors_to(item):
                    _refuse_too_many(item)
                    refuse_expired(item.request)
                    item.outcome = self.encode(self.explain(item), item.params)

    def prepare(self) -> None:
        """Import the codecs of the kinds that this model reads."""
        sniff.prepare(self.spec.input)

    def decode(self, payload: Payload) -> Image:
        """PNG, JPEG, TIFF or DICOM, by content -> the image in it."""
        return sniff.decode(payload, self.spec.input)

    def preprocess(self, source: Image) -> npt.NDArray[np.float32]:
        """Image -> plane (C, H, W) in [0, 1] by the `input.fit` of the spec, as in training."""
        return fit_image(source, self.spec.input)

    def postprocess(self, outputs: Outputs) -> Classification:
        """Calibrated logits (K,) and novelty () -> probabilities, and the two flags."""
        logits = outputs["logits"].astype(np.float64)
        novelty = float(outputs["novelty"])
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        if not (np.isfinite(probabilities).all() and np.isfinite(novelty)):
            raise ServerFailedError("the network gave a number that is not finite for this image")
        return Classification(
            labels=self.spec.labels,
            probabilities=tuple(probabilities.tolist()),
            review=bool(probabilities.max() < self.spec.output.review_below),
            novelty=novelty,
        )

    def encode(self, result: Classification, params: ClassifierParams) -> bytes:
        """A JSON object with the members of `Classification.to_json`."""
        return json.dumps(result.to_json(params.top_k), separators=(",", ":")).encode()

    # ---- with a heat map

    def explain(self, item: Item[ClassifierParams]) -> Classification:
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
        row = self.preprocess(source)
        del source  # not beside the copies of its row
        found = occlude(row, self.place(shape), self.infer, watch.check)
        result = self.postprocess({name: array[0] for name, array in found.outputs.items()})
        return replace(result, explanation=_explanation(result, found, shape))

    def place(self, shape: tuple[int, int]) -> Box:
        """Where an image of that shape lies on the network's plane; as `preprocess` puts it."""
        height, width = self.spec.input.size
        return fitted_box(shape, (height, width))

    def check_outputs(self, outputs: Outputs) -> None:
        """One logit per label and one novelty per image, or the artifact is another model's."""
        expected = {"logits": (1, len(self.spec.labels)), "novelty": (1,)}
        got = {name: array.shape for name, array in outputs.items()}
        if got != expected:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected outputs {expected} for one image and "
                f"{len(self.spec.labels)} labels, got {got}; the artifact belongs to another model"
            )


def _refuse_too_many(item: Item[ClassifierParams]) -> None:
    files = len(item.request.payloads)
    if files > EXPLAINED_PER_CALL:
        raise PayloadTooLargeError(
            f"expected at most {EXPLAINED_PER_CALL} files a call to explain, got {files}; "
            "send them in several calls, or leave explain out"
        )


def _explanation(result: Classification, found: Occlusion, shape: tuple[int, int]) -> Explanation:
    if not np.isfinite(found.evidence).all():
        raise ServerFailedError("the network gave a number that is not finite for a covered image")
    return Explanation(
        label=result.labels[found.label_id],
        without_warmest=_probability(found.without_warmest),
        without_coolest=_probability(found.without_coolest),
        full_colour=heatmap.full_colour(found.evidence),
        heatmap_png=heatmap.encode(found.evidence, shape),
    )


def _probability(log_odds: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -log_odds)))
