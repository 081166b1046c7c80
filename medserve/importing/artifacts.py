"""Write a network of torch as the two files that engines execute."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

__all__ = ["write_onnx", "write_torchscript"]

_OPSET = 18
_OPSET_OF_SCRIPT = 17  # the latest that torch's exporter of scripts writes


def write_torchscript(
    artifact: nn.Module, path: Path, inputs: Mapping[str, Tensor], outputs: Sequence[str]
) -> None:
    """Write a frozen trace; the number of rows is free, sides are those of the inputs.

    Args:
        artifact: In eval mode, on the CPU.
        path: Of the file.
        inputs: For each argument, in their order, an example (N, ...) with N >= 2.
        outputs: Names of the answers, in their order.
    """
    if isinstance(artifact, torch.jit.ScriptModule):
        artifact.save(str(path))  # as it is; its first answer counts as the first name
        return
    with warnings.catch_warnings(), torch.no_grad():
        # Deprecated since torch 2.10 without a successor that runs without its Python code.
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        # Sides are meant to become constants of the trace.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python")
        # The trace reads every attribute, those that transformers deprecates too.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        traced = torch.jit.trace(artifact, tuple(inputs.values()))  # type: ignore[no-untyped-call]
        # A trace keeps no attribute of its network, so the names are registered afterwards.
        names = torch._C.ListType(torch._C.StringType.get())
        traced._c._register_attribute("outputs", names, list(outputs))
        halves = any(each.dtype is torch.float16 for each in artifact.parameters())
        if not halves:  # frozen, kernels would be stored as they are computed with
            traced = torch.jit.freeze(traced, preserved_attrs=["outputs"])
        torch.jit.save(traced, path)
    _drop_source_lines(path)


def _drop_source_lines(path: Path) -> None:
    """Leave out what names files of the machine that trained; nothing reads it but tracebacks."""
    whole = path.with_suffix(".whole")
    path.rename(whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            if not member.filename.endswith(".debug_pkl"):
                target.writestr(member, source.read(member))
    whole.unlink()


def write_onnx(
    artifact: nn.Module, path: Path, inputs: Mapping[str, Tensor], outputs: Sequence[str]
) -> None:
    """Write one ONNX file of the same network; arguments as for `write_torchscript`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, we do not
    if isinstance(artifact, torch.jit.ScriptModule):
        _write_onnx_of_script(artifact, path, inputs, outputs)
        return
    with warnings.catch_warnings():
        # torch's own exporter uses what torch deprecates.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        # Several inputs share the number of images, and its name.
        warnings.filterwarnings("ignore", ".*The axis name: N will not be used")
        program = torch.onnx.export(
            artifact,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes={name: {0: torch.export.Dim("N")} for name in inputs},
            verbose=False,
        )
    assert program is not None  # dynamo=True returns the program
    model = program.model_proto
    # Source lines of the machine that trained have no place in a published file.
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        del value.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def _write_onnx_of_script(
    artifact: nn.Module, path: Path, inputs: Mapping[str, Tensor], outputs: Sequence[str]
) -> None:
    """Write the ONNX file of a network that is TorchScript already, which has no Python code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that can read it is deprecated
        torch.onnx.export(
            artifact,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: "N"} for name in (*inputs, *outputs)},
            opset_version=_OPSET_OF_SCRIPT,
            dynamo=False,
        )
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)
