"""From a fitted support vector machine to the artifact: ONNX by skl2onnx, TorchScript beside it.

The ONNX graph is a line of three parts: the image shrunk to a row, what skl2onnx makes of the
pipeline, and the two outputs that every classifier of this project has.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC
from torch import Tensor, nn

from medserve.errors import ArchiveError
from medserve.inference.engines import load_engine
from medserve.spec import EngineName, Precision
from models.mednist.svm import FittedSvm, PairwiseLogits, SupportVectorMachine
from training.classification.novelty import Novelty
from training.core.export import OUTPUTS, export_network

__all__ = ["TOLERANCE", "ServedSvm", "export_svm", "fitted_parts"]

_log = logging.getLogger(__name__)

# Of the logits, absolute. Kernel values near 1 are differences of large numbers in float32, and
# hundreds of them are summed with weights up to C; 0.02 moves a probability by half a percent.
TOLERANCE = 2e-2
_OPSET, _ML_OPSET = 18, 1
_STEEPNESS = 4.0  # of the pairwise sigmoid; 1 disagrees with libsvm's vote on 4 times the images
_FLOOR = 1e-3  # added to the residual before its log, so that a blank image has one
_PARTS = 4  # along each axis, of which novelty sees the mean intensity
_DARK = 0.02  # added to that before its log: five grey levels


def fitted_parts(pipeline: Pipeline) -> FittedSvm:
    """The numbers in a fitted pipeline of shrinking, PCA, scaling and SVC."""
    pca, scale, svc = (pipeline[name] for name in ("pca", "scale", "svc"))
    return FittedSvm(
        shrink=pipeline["shrink"].factor,
        components=pca.components_,
        centre=pca.mean_,
        mean=scale.mean_,
        deviation=scale.scale_,
        vectors=svc.support_vectors_,
        per_class=tuple(int(count) for count in svc.n_support_),
        coefficients=svc.dual_coef_,
        intercepts=svc.intercept_,
        gamma=float(svc.gamma) if svc.kernel == "rbf" else None,
    )


class ServedSvm(nn.Module):
    """Image -> calibrated logits and novelty, as every classifier answers.

    `novelty` and `temperature` are set once they are fitted on what `describe` and `decide` say.
    """

    novelty: Novelty
    temperature: Tensor

    def __init__(self, machine: SupportVectorMachine, classes: int) -> None:
        super().__init__()
        self.machine = machine
        self.pairwise = PairwiseLogits(classes)
        self.register_buffer("temperature", torch.tensor(1.0))

    def describe(self, small: Tensor, features: Tensor) -> Tensor:
        """What novelty sees: the components, what they leave unsaid, and the light of each part.

        In logs the dark parts count, of which the components say nothing: a black frame.
        """
        machine = self.machine
        explained = features * machine.deviation + machine.mean
        left = (small - machine.centre).square().sum(dim=1) - explained.square().sum(dim=1)
        unsaid = torch.log(left.clamp(min=0.0) + _FLOOR)[:, None]
        side = math.isqrt(small.shape[1])
        light = F.avg_pool2d(small.view(-1, 1, side, side), max(1, side // _PARTS)).flatten(1)
        return torch.cat([features, unsaid, torch.log(light + _DARK)], dim=1)

    def decide(self, decisions: Tensor) -> Tensor:
        """Decisions (N, P) -> logits (N, K), not calibrated yet."""
        return self.pairwise(_STEEPNESS * decisions)

    def judge(
        self, image: Tensor, small: Tensor, features: Tensor, decisions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the pipeline said on its way -> logits (N, K), novelty (N,)."""
        logits = self.decide(decisions) / self.temperature
        return logits, self.novelty.judge(image, self.describe(small, features), logits)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image float32 (N, 1, H, W) in [0, 1] -> logits (N, K), novelty (N,)."""
        small = self.machine.small(image)
        features = self.machine.features(small)
        return self.judge(image, small, features, self.machine.decisions(features))


class _Judge(nn.Module):
    """The last part of the line alone, for its export."""

    def __init__(self, served: ServedSvm) -> None:
        super().__init__()
        self.served = served

    def forward(
        self, image: Tensor, small: Tensor, features: Tensor, decisions: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.served.judge(image, small, features, decisions)


@dataclass(frozen=True)
class Agreement:
    """Largest absolute differences over the example images.

    Attributes:
        decisions: Between skl2onnx's graph and scikit-learn, both of the pairs' decisions.
        logits: Between ONNX and TorchScript on one side, eager torch on the other.
    """

    decisions: float
    logits: float


def export_svm(served: ServedSvm, pipeline: Pipeline, folder: Path, example: Tensor) -> Agreement:
    """Write `model.onnx` and `model.pt`; ArchiveError where the answers differ.

    Args:
        served: The pipeline's tensors with novelty and temperature, in eval mode.
        pipeline: The fitted pipeline itself.
        folder: Made where it is missing.
        example: Real images float32 (N, 1, H, W) in [0, 1], N >= 2.
    """
    served = served.eval()
    export_network(served, folder, example, OUTPUTS, TOLERANCE)
    graph = _join(served, _converted(pipeline), example)
    onnx.save_model(graph, folder / "model.onnx")  # in place of torch's
    with torch.no_grad():
        logits, novelty = served(example)
    engine = load_engine(EngineName.ONNXRUNTIME, folder, precision=Precision.F32, threads=1)
    answered = engine.run(example.numpy())
    expected = {"logits": logits.numpy(), "novelty": novelty.numpy()}
    largest = max(float(np.abs(answered[name] - expected[name]).max()) for name in OUTPUTS)
    rows = np.rint(255.0 * example.numpy()).astype(np.uint8).reshape(len(example), -1)
    with torch.no_grad():
        mine = served.machine.decisions(served.machine.features(served.machine.small(example)))
    theirs = pipeline.decision_function(rows)
    agreement = Agreement(float(np.abs(mine.numpy() - theirs).max()), largest)
    if not max(agreement.decisions, agreement.logits) <= TOLERANCE:
        raise ArchiveError(
            f"expected scikit-learn, torch and ONNX to agree within {TOLERANCE:g}, but they "
            f"differ by {max(agreement.decisions, agreement.logits):g}; do not ship this export"
        )
    _log.info("scikit-learn's decisions agree within %.1e, the logits within %.1e",
              agreement.decisions, agreement.logits)  # fmt: skip
    return agreement


def _converted(pipeline: Pipeline) -> onnx.ModelProto:
    """PCA, scaling and SVC by skl2onnx, from the row `small` on."""
    tail = pipeline[1:]
    width = pipeline["pca"].n_features_in_
    with warnings.catch_warnings():
        # skl2onnx asks for the probabilities that scikit-learn no longer wants to give.
        warnings.filterwarnings("ignore", "Attribute `prob[AB]_` was deprecated", FutureWarning)
        return convert_sklearn(
            tail,
            initial_types=[("small", FloatTensorType([None, width]))],
            options={SVC: {"raw_scores": True, "zipmap": False}},
            target_opset={"": _OPSET, "ai.onnx.ml": 3},
        )


def _join(served: ServedSvm, converted: onnx.ModelProto, example: Tensor) -> onnx.ModelProto:
    """The three parts as one graph from `image` to `logits` and `novelty`."""
    svc = next(node for node in converted.graph.node if node.op_type == "SVMClassifier")
    shrink = [served.machine.shrink] * 2
    head = [
        helper.make_node("AveragePool", ["image"], ["shrunk"], kernel_shape=shrink, strides=shrink),
        helper.make_node("Flatten", ["shrunk"], ["small"], axis=1),
    ]
    body = [node for node in converted.graph.node if node.op_type != "Cast"]  # of the scores
    known = {
        "image": "image",
        "small": "small",
        "features": svc.input[0],
        "decisions": svc.output[1],
    }
    judge = _exported_judge(served, example)
    _rename(judge.graph, {**known, **{name: name for name in OUTPUTS}})
    side = list(example.shape[1:])
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", *side])
    graph = helper.make_graph(
        [*head, *body, *judge.graph.node],
        "svm",
        [image],
        list(judge.graph.output),
        [*converted.graph.initializer, *judge.graph.initializer],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=judge.ir_version)
    onnx.checker.check_model(model)
    return model


def _exported_judge(served: ServedSvm, example: Tensor) -> onnx.ModelProto:
    machine = served.machine
    with torch.no_grad():
        small = machine.small(example)
        features = machine.features(small)
        inputs = {
            "image": example,
            "small": small,
            "features": features,
            "decisions": machine.decisions(features),
        }
    with tempfile.TemporaryDirectory(prefix="medserve-svm-") as folder:
        exported = export_network(_Judge(served), Path(folder), inputs, OUTPUTS, TOLERANCE)
        return onnx.load(exported.onnx)


def _rename(graph: onnx.GraphProto, known: Mapping[str, str]) -> None:
    """Give every name in the graph that is not `known` one that no other part can have."""

    def renamed(name: str) -> str:
        return known.get(name, f"judge/{name}") if name else name

    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        node.name = renamed(node.name)
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
