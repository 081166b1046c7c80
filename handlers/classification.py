"""Classifiers of single images: everything but how a model wants its pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from handlers.rows import RowHandler
from medserve.errors import InvalidRequestError, ModelNotReadyError, ServerFailedError
from medserve.imaging import Classification, Image, sniff
from medserve.imaging.limits import Payload
from medserve.inference.engines import Outputs

__all__ = ["ClassificationHandler", "ClassifierParams"]


@dataclass(frozen=True)
class ClassifierParams:
    """What a caller may ask of a classifier."""

    top_k: int  # labels in the answer's `top`, most probable first


class ClassificationHandler(RowHandler[Image, ClassifierParams, Classification]):
    """Image -> Classification; a model's own handler adds `preprocess`."""

    def parse_params(self, params: Mapping[str, object]) -> ClassifierParams:
        """Known keys: top_k, 1 to the number of labels."""
        if set(params) - {"top_k"}:
            raise InvalidRequestError("params: expected only known keys: top_k; got another one")
        largest = len(self.spec.labels)
        top_k = params.get("top_k", min(self.spec.output.top_k, largest))
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= largest:
            raise InvalidRequestError(
                f"params: top_k: expected a whole number from 1 to {largest}, got something else"
            )
        return ClassifierParams(top_k)

    def prepare(self) -> None:
        """Import the codecs of the kinds that this model reads."""
        sniff.prepare(self.spec.input)

    def decode(self, payload: Payload) -> Image:
        """PNG, JPEG, TIFF or DICOM, by content -> the image in it."""
        return sniff.decode(payload, self.spec.input)

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

    def check_outputs(self, outputs: Outputs) -> None:
        """One logit per label and one novelty per image, or the artifact is another model's."""
        expected = {"logits": (1, len(self.spec.labels)), "novelty": (1,)}
        got = {name: array.shape for name, array in outputs.items()}
        if got != expected:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected outputs {expected} for one image and "
                f"{len(self.spec.labels)} labels, got {got}; the artifact belongs to another model"
            )
