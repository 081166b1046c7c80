"""How each task looks through the Open Inference Protocol: its tensors, described and filled.

| task | inputs | outputs |
|---|---|---|
| classification | `data` BYTES [-1]: encoded files | one row per file |
| regression | `data` BYTES [-1]: encoded files | one row per file, a column per value |
| segmentation | `data` BYTES [1]: one encoded file | the mask: voxels, file, measurements |
| … of several images | `data.NAME` BYTES [1] for each, or all in `data` | the same |
| generation | none; parameters say what to draw | `images` BYTES [-1]: PNG |

Files that an option asks for, such as an overlay, come as further outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medserve.errors import MedserveError, ServerFailedError
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.packing import Outcome
from medserve.gateway.faces.oip.tensors import Tensor
from medserve.imaging.codecs import nifti
from medserve.spec import Task
from medserve.tasks.classification import Classification
from medserve.tasks.frames import FrameResult
from medserve.tasks.generation import GenerationResult
from medserve.tasks.regression import Regression
from medserve.tasks.result import Result
from medserve.tasks.volumes import VolumeResult
from medserve.wire import open_inference_pb2 as pb

__all__ = [
    "ONLY_ON_REQUEST",
    "classes",
    "configuration",
    "describe",
    "files_on_request",
    "images",
    "input_tensors",
    "mask",
    "output_tensors",
    "values",
]

ONLY_ON_REQUEST = ("mask_png",)  # every answer to a single frame holds it
_MASK_FILES = ("mask_png", "overlay_png", "entropy_nifti", "probabilities_nifti", "dicom_seg")

_Described = tuple[str, str, tuple[int, ...]]  # name, datatype, shape
_PLATFORM = "medserve"
_ANY = -1  # a size that differs from call to call


def input_tensors(model: ModelInfo) -> tuple[_Described, ...]:
    """What a request carries."""
    match model.task:
        case Task.CLASSIFICATION | Task.REGRESSION:
            return (("data", "BYTES", (_ANY,)),)
        case Task.VOLUMES | Task.FRAMES:
            names = [f"data.{name}" for name in model.channels] or ["data"]
            return tuple((name, "BYTES", (1,)) for name in names)
        case Task.GENERATION:
            return ()


def output_tensors(model: ModelInfo) -> tuple[_Described, ...]:
    """What an answer carries, in this order."""
    labels = len(model.labels)
    match model.task:
        case Task.CLASSIFICATION:
            is_independent = model.spec.has_independent_labels
            return (
                ("label", "BYTES", (_ANY,)),
                ("class_id", "INT64", (_ANY,)),
                ("probability", "FP32", (_ANY,)),
                ("probabilities", "FP32", (_ANY, labels)),
                ("review", "BOOL", (_ANY,)),
                ("novelty", "FP32", (_ANY,)),
                ("status", "BYTES", (_ANY,)),
                ("error", "BYTES", (_ANY,)),
                *((("present", "BOOL", (_ANY, labels)),) if is_independent else ()),
            )
        case Task.REGRESSION:
            values = len(model.spec.values)
            return (
                ("values", "FP64", (_ANY, values)),
                ("names", "BYTES", (values,)),
                ("units", "BYTES", (values,)),
                ("review", "BOOL", (_ANY,)),
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


def classes(outcomes: Sequence[Outcome], model: ModelInfo) -> list[Tensor]:
    """One row per file, in the order of the request.

    A file without an answer has the status of its error, an empty label, class -1 and numbers
    that are not a number. Of independent labels no file has a label, a class and its probability;
    `present` says for each label whether it is there.
    """
    labels = model.labels
    found: list[Classification | MedserveError] = []
    for outcome in outcomes:
        try:
            found.append(_checked(outcome.classification(), labels))
        except MedserveError as error:
            found.append(error)
    good = [each if isinstance(each, Classification) else None for each in found]
    nothing = (math.nan,) * len(labels)
    tensors = [
        Tensor("label", "BYTES", [each.label.encode() if each else b"" for each in good]),
        Tensor("class_id", "INT64", np.array([each.label_id if each else -1 for each in good])),
        _floats("probability", [each.probability if each else math.nan for each in good]),
        _floats("probabilities", [each.probabilities if each else nothing for each in good]),
        Tensor("review", "BOOL", np.array([each is None or each.review for each in good])),
        _floats("novelty", [math.nan if each is None else _told(each.novelty) for each in good]),
        *_statuses(found),
    ]
    if model.spec.has_independent_labels:
        present = [each.present or () if each else () for each in good]
        rows = [[label in each for label in labels] for each in present]
        tensors.append(Tensor("present", "BOOL", np.array(rows)))
    return tensors


def values(outcomes: Sequence[Outcome], model: ModelInfo) -> list[Tensor]:
    """One row per file, in the order of the request, and a column per number of the model.

    A file without an answer has the status of its error and numbers that are not a number.
    """
    specs = model.spec.values
    found: list[Regression | MedserveError] = []
    for outcome in outcomes:
        try:
            found.append(outcome.regression())
        except MedserveError as error:
            found.append(error)
    good = [each if isinstance(each, Regression) else None for each in found]
    nothing = [math.nan] * len(specs)
    rows = [[value.value for value in each.values] if each else nothing for each in good]
    return [
        Tensor("values", "FP64", np.array(rows, dtype=np.float64).reshape(-1, len(specs))),
        Tensor("names", "BYTES", [each.name.encode() for each in specs]),
        Tensor("units", "BYTES", [each.unit.encode() for each in specs]),
        Tensor("review", "BOOL", np.array([each is None or each.review for each in good])),
        *_statuses(found),
    ]


def mask(answer: bytes, task: Task) -> list[Tensor]:
    """Return the voxels of a mask, where they lie, how much each label takes, and the files."""
    kind = FrameResult if task is Task.FRAMES else VolumeResult
    found: FrameResult | VolumeResult = kind.decode(answer)
    voxels = nifti.decode(found.mask_nifti).array.astype(np.uint8, copy=False)
    # Frames whose lengths nobody states have no volume.
    volumes = [measure.volume_ml for measure in found.measures] or [np.nan] * (
        len(found.labels) - 1
    )
    return [
        Tensor("mask", "UINT8", voxels.reshape(found.shape)),
        Tensor("affine", "FP64", np.array(found.affine, dtype=np.float64)),
        Tensor("spacing_mm", "FP64", np.array(found.spacing_mm, dtype=np.float64)),
        Tensor("labels", "BYTES", [label.encode() for label in found.labels]),
        Tensor("volumes_ml", "FP64", np.array(volumes, dtype=np.float64)),
        Tensor("mask_nifti", "BYTES", [found.mask_nifti]),
        *_files(found, _MASK_FILES),
    ]


def images(result: GenerationResult) -> list[Tensor]:
    """Return finished images with the seeds that draw them again, and the files."""
    dicom = [image.dicom for image in result.images if image.dicom is not None]
    return [
        Tensor("images", "BYTES", [image.png for image in result.images]),
        Tensor("seeds", "INT64", np.array([image.seed for image in result.images], dtype=np.int64)),
        *_files(result, ("npz", "nifti")),
        *([Tensor("dicom", "BYTES", dicom)] if dicom else []),
    ]


def files_on_request(model: ModelInfo) -> tuple[str, ...]:
    """Name the outputs, all of them files, that only some answers of a model carry."""
    if model.task is Task.GENERATION:
        return ("npz", "nifti", "dicom")
    return _MASK_FILES if model.task.segments else ()


def describe(model: ModelInfo, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Inputs and outputs of a model as the protocol describes them."""
    response = pb.ModelMetadataResponse(name=model.name, versions=versions, platform=_PLATFORM)
    for name, datatype, shape in input_tensors(model):
        response.inputs.add(name=name, datatype=datatype, shape=shape)
    for name, datatype, shape in output_tensors(model):
        response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response


def configuration(model: ModelInfo) -> pb.ModelConfig:
    """Return a model as Triton's configuration files describe theirs."""
    return pb.ModelConfig(
        name=model.name,
        platform=_PLATFORM,
        backend=_PLATFORM,
        max_batch_size=0,
        input=[
            pb.ModelInput(name=name, data_type=_config_type(datatype), dims=shape)
            for name, datatype, shape in input_tensors(model)
        ],
        output=[
            pb.ModelOutput(name=name, data_type=_config_type(datatype), dims=shape)
            for name, datatype, shape in output_tensors(model)
        ],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )


def _config_type(datatype: str) -> pb.DataType.ValueType:
    return pb.DataType.Value("TYPE_" + {"BYTES": "STRING"}.get(datatype, datatype))


def _statuses(found: Sequence[object]) -> list[Tensor]:
    """Return what became of each file, and why there is no answer where there is none."""
    errors = [each if isinstance(each, MedserveError) else None for each in found]
    return [
        Tensor("status", "BYTES", [each.code.encode() if each else b"ok" for each in errors]),
        Tensor("error", "BYTES", [each.message.encode() if each else b"" for each in errors]),
    ]


def _told(novelty: float | None) -> float:
    return math.nan if novelty is None else novelty


def _floats(name: str, values: Sequence[object]) -> Tensor:
    return Tensor(name, "FP32", np.array(values, dtype=np.float32))


def _checked(found: Classification, labels: Sequence[str]) -> Classification:
    if found.labels != tuple(labels):
        raise ServerFailedError("the model answers for other labels than its archive names")
    return found


def _files(result: Result, names: Sequence[str]) -> list[Tensor]:
    """Return those files that the answer holds."""
    found = ((name, getattr(result, name, None)) for name in names)
    return [Tensor(name, "BYTES", [content]) for name, content in found if content is not None]
