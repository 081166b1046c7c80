"""How each task looks through the Open Inference Protocol: its tensors, described and filled.

| task | inputs | outputs |
|---|---|---|
| classification | `data` BYTES [-1]: encoded files | one row per file |
| segmentation | `data` BYTES [1]: one encoded file | the mask: voxels, file, measurements |
| generation | none; parameters say what to draw | `images` BYTES [-1]: PNG |
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medserve.errors import MedserveError, ServerFailedError
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.drawing import Drawn
from medserve.gateway.core.masks import MaskAnswer
from medserve.gateway.core.packing import Outcome
from medserve.gateway.faces.oip.tensors import Tensor
from medserve.imaging.codecs import nifti
from medserve.spec import Task
from medserve.tasks.classification import Classification
from medserve.wire import open_inference_pb2 as pb

__all__ = ["classes", "images", "input_tensors", "mask", "output_tensors"]

_Described = tuple[str, str, tuple[int, ...]]  # name, datatype, shape
_ANY = -1  # a size that differs from call to call


def input_tensors(model: ModelInfo) -> tuple[_Described, ...]:
    """What a request carries."""
    match model.task:
        case Task.CLASSIFICATION:
            return (("data", "BYTES", (_ANY,)),)
        case Task.VOLUMES | Task.FRAMES:
            return (("data", "BYTES", (1,)),)
        case Task.GENERATION:
            return ()


def output_tensors(model: ModelInfo) -> tuple[_Described, ...]:
    """What an answer carries, in this order."""
    labels = len(model.labels)
    match model.task:
        case Task.CLASSIFICATION:
            return (
                ("label", "BYTES", (_ANY,)),
                ("class_id", "INT64", (_ANY,)),
                ("probability", "FP32", (_ANY,)),
                ("probabilities", "FP32", (_ANY, labels)),
                ("review", "BOOL", (_ANY,)),
                ("novelty", "FP32", (_ANY,)),
                ("status", "BYTES", (_ANY,)),
                ("error", "BYTES", (_ANY,)),
            )
        case Task.VOLUMES | Task.FRAMES:
            return (
                ("mask", "UINT8", (_ANY, _ANY, _ANY)),
                ("affine", "FP64", (4, 4)),
                ("spacing_mm", "FP64", (3,)),
                ("labels", "BYTES", (labels,)),
                ("volumes_ml", "FP64", (labels - 1,)),
                ("mask_nifti", "BYTES", (1,)),
            )
        case Task.GENERATION:
            return (("images", "BYTES", (_ANY,)), ("seeds", "INT64", (_ANY,)))


def classes(outcomes: Sequence[Outcome], labels: Sequence[str]) -> list[Tensor]:
    """One row per file, in the order of the request.

    A file without an answer has the status of its error, an empty label, class -1 and numbers
    that are not a number.
    """
    found: list[Classification | MedserveError] = []
    for outcome in outcomes:
        try:
            found.append(_checked(outcome.classification(), labels))
        except MedserveError as error:
            found.append(error)
    good = [each if isinstance(each, Classification) else None for each in found]
    errors = [each if isinstance(each, MedserveError) else None for each in found]
    nothing = (math.nan,) * len(labels)
    return [
        Tensor("label", "BYTES", [each.label.encode() if each else b"" for each in good]),
        Tensor("class_id", "INT64", np.array([each.label_id if each else -1 for each in good])),
        _floats("probability", [each.probability if each else math.nan for each in good]),
        _floats("probabilities", [each.probabilities if each else nothing for each in good]),
        Tensor("review", "BOOL", np.array([each is None or each.review for each in good])),
        _floats("novelty", [each.novelty if each else math.nan for each in good]),
        Tensor("status", "BYTES", [each.code.encode() if each else b"ok" for each in errors]),
        Tensor("error", "BYTES", [each.message.encode() if each else b"" for each in errors]),
    ]


def mask(answer: MaskAnswer) -> list[Tensor]:
    """The voxels of a mask, where they lie, and how much each label takes."""
    voxels = nifti.decode(answer.mask).array.astype(np.uint8, copy=False)
    # Frames whose lengths nobody states have no volume.
    volumes = [measure.volume_ml for measure in answer.measures] or [np.nan] * (
        len(answer.labels) - 1
    )
    return [
        Tensor("mask", "UINT8", voxels.reshape(answer.shape)),
        Tensor("affine", "FP64", np.array(answer.affine, dtype=np.float64)),
        Tensor("spacing_mm", "FP64", np.array(answer.spacing_mm, dtype=np.float64)),
        Tensor("labels", "BYTES", [label.encode() for label in answer.labels]),
        Tensor("volumes_ml", "FP64", np.array(volumes, dtype=np.float64)),
        Tensor("mask_nifti", "BYTES", [answer.mask]),
    ]


def images(drawn: Sequence[Drawn]) -> list[Tensor]:
    """Finished images with the seeds that draw them again."""
    return [
        Tensor("images", "BYTES", [each.png for each in drawn]),
        Tensor("seeds", "INT64", np.array([each.seed for each in drawn], dtype=np.int64)),
    ]


def describe(model: ModelInfo, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Inputs and outputs of a model as the protocol describes them."""
    response = pb.ModelMetadataResponse(name=model.name, versions=versions, platform="medserve")
    for name, datatype, shape in input_tensors(model):
        response.inputs.add(name=name, datatype=datatype, shape=shape)
    for name, datatype, shape in output_tensors(model):
        response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response


def _floats(name: str, values: Sequence[object]) -> Tensor:
    return Tensor(name, "FP32", np.array(values, dtype=np.float32))


def _checked(found: Classification, labels: Sequence[str]) -> Classification:
    if found.labels != tuple(labels):
        raise ServerFailedError("the model answers for other labels than its archive names")
    return found
