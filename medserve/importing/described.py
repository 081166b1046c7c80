"""A network in a file of ONNX or TorchScript, and a description of what it reads and answers.

Those that classify pictures or tell their numbers and those that segment frames or volumes can be
described.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
import yaml
from torch import nn

from medserve.errors import ConfigError
from medserve.importing.source import Described, Source
from medserve.spec import ModelSpec, Task

__all__ = ["load_script", "read_onnx", "read_torchscript"]

_BRANCHES = ("If", "Loop", "Scan")
_STANDARD = ("", "ai.onnx")
_MAX_BYTES = 2**31
_LOGITS = "logits"


def read_onnx(path: Path, description: Path, folder: Path) -> Source | Described:
    """Read a network of ONNX with its description.

    Args:
        path: One file, weights included, with one input float32 (N, C, ...).
        description: A `model-config.yaml`, as `medserve init` writes it.
        folder: Where the network is written with the names that serving wants.

    Raises:
        ConfigError: the file or its description cannot be used, or they contradict each other.
    """
    spec = _description(description)
    model = _loaded(path)
    graph = model.graph
    weights = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1 or not graph.output:
        raise ConfigError(f"{path}: expected one input and an output, got {len(inputs)} inputs")
    for node in graph.node:
        if node.op_type in _BRANCHES or node.domain not in _STANDARD:
            raise ConfigError(
                f"{path}: expected operators of ONNX without branches, got "
                f"{node.domain or 'ai.onnx'}.{node.op_type}; export the network again without it"
            )
    _check_input(path, inputs[0], spec)
    if graph.output[0].type.WhichOneof("value") != "tensor_type":
        raise ConfigError(f"{path}: expected a first output with scores, got no tensor")
    if graph.output[0].name != _LOGITS:
        _rename(graph, graph.output[0].name)
    written = folder / "named.onnx"
    onnx.save_model(model, str(written))
    return _source(spec, description, written, f"ONNX file {path.name}")


def read_torchscript(path: Path, description: Path) -> Source | Described:
    """Read a network of TorchScript with its description; arguments and errors as above.

    A TorchScript file is a program: it cannot reach Python, but what it does is its maker's.
    """
    spec = _description(description)
    network = load_script(path)
    return _source(spec, description, network, f"TorchScript file {path.name}")


def load_script(path: Path) -> nn.Module:
    """Load a network of TorchScript, in eval mode, on the CPU."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            network: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu"
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected a file that torch.jit.save wrote, got another or a damaged one"
        ) from error
    return network.eval()


def _loaded(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {_MAX_BYTES} bytes, got more")
        model = onnx.load(str(path), load_external_data=False)
        if any(each.data_location == onnx.TensorProto.EXTERNAL for each in _tensors(model)):
            raise ConfigError(
                f"{path}: expected one file with its weights, got one that names other files; "
                f"save it with save_as_external_data=False"
            )
        onnx.checker.check_model(model)
    except ConfigError:
        raise
    except Exception as error:  # protobuf and the checker have no common base
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            f"{path}: expected a valid ONNX file, got something else ({told})"
        ) from error
    return model


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a file holds beside its branches, which are refused."""
    yield from model.graph.initializer
    for node in (*model.graph.node, *(node for each in model.functions for node in each.node)):
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors


def _check_input(path: Path, found: onnx.ValueInfoProto, spec: ModelSpec) -> None:
    kind = found.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise ConfigError(
            f"{path}: expected an input of float32, got another type; export the network again "
            f"with float32 inputs"
        )
    stated = [each.dim_value or None for each in kind.shape.dim]
    wanted = [spec.input.channels, *spec.input.size]
    if len(stated) != len(wanted) + 1 or any(
        has is not None and has != needs for has, needs in zip(stated[1:], wanted, strict=True)
    ):
        shown = ", ".join("N" if each is None else str(each) for each in stated)
        is_turned = stated[1:] == [*wanted[1:], wanted[0]]
        raise ConfigError(
            f"{path}: expected an input of (N, {', '.join(map(str, wanted))}) by its description, "
            f"got ({shown}); "
            + (
                "export the network again with its channels before the sides"
                if is_turned
                else "correct input.size and input.channels"
            )
        )
    if spec.volume is None and stated[0] is not None:
        raise ConfigError(
            f"{path}: expected any number of rows, because pictures share calls, got {stated[0]}; "
            "export the network again with a free first axis"
        )
    if spec.volume is not None and stated[0] not in (None, spec.volume.window_batch):
        raise ConfigError(
            f"{path}: expected any number of rows or {spec.volume.window_batch}, got "
            f"{stated[0]}; set volume.window_batch to it"
        )


def _rename(graph: onnx.GraphProto, name: str) -> None:
    """Give the first output the name that serving wants."""
    taken = {each for node in graph.node for each in (*node.input, *node.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            for place, each in enumerate(names):
                if each == name:
                    names[place] = _LOGITS
                elif each == _LOGITS and _LOGITS in taken:
                    names[place] = f"{_LOGITS}_before"
    for value in (*graph.input, *graph.value_info, *graph.output[1:]):
        if value.name == _LOGITS:
            value.name = f"{_LOGITS}_before"
    for tensor in graph.initializer:
        if tensor.name == _LOGITS:
            tensor.name = f"{_LOGITS}_before"
    graph.output[0].name = _LOGITS


def _description(path: Path) -> ModelSpec:
    spec = ModelSpec.from_file(path)
    if spec.task is Task.GENERATION:
        raise ConfigError(
            f"{path}: expected the task classification, regression, frames or volumes, got "
            f"{spec.task}, which cannot be imported"
        )
    return spec


def _source(
    spec: ModelSpec, description: Path, network: nn.Module | Path, origin: str
) -> Source | Described:
    content = yaml.safe_load(description.read_text(encoding="utf-8"))
    origin = f"{origin}, described by hand"
    if spec.task is not Task.VOLUMES:
        return Described(content, network, origin)
    own = content.pop("medserve")
    return Source(
        name=spec.name,
        title=spec.title,
        labels=spec.labels,
        size=spec.input.size,
        channels=spec.input.channels,
        volume=own["volume"],
        network=network,
        origin=origin,
        licence="not stated",
        modalities=[],
        typical_shape=spec.input.size,
        serving=content,
        input=own["input"],
    )
