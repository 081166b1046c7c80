"""Networks that tell numbers of single images; names and units stand in the spec."""

from __future__ import annotations

import json

from handlers.images import ImageHandler
from medserve.errors import ModelNotReadyError
from medserve.inference.engines import Outputs
from medserve.tasks.regression import Regression, RegressionOptions, estimates

__all__ = ["RegressionHandler"]


class RegressionHandler(ImageHandler[RegressionOptions, Regression]):
    """Image -> Regression; a model's own handler adds only its name."""

    def from_network(self, outputs: Outputs) -> Regression:
        """Outputs (K,) of the network -> numbers in their units."""
        return estimates(outputs["logits"].tolist(), self.spec.values)

    def encode(self, result: Regression, params: RegressionOptions) -> bytes:
        """A JSON object with the members of `Regression.to_json`."""
        return json.dumps(result.to_json(), separators=(",", ":")).encode()

    def check_outputs(self, outputs: Outputs) -> None:
        """One number per value of the spec, or the artifact is another model's."""
        expected, got = (1, len(self.spec.values)), outputs["logits"].shape
        if got != expected:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected outputs {expected} for one image and "
                f"{len(self.spec.values)} values, got {got}; the artifact belongs to another model"
            )
