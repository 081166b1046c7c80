"""Foreign contracts equal their originals, and the generated code is what all of them give."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sized
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")
WIRE = ROOT / "medserve" / "wire"


def generate(folder: Path, *options: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "protos.py"), str(folder), *options]
    subprocess.run(command, check=True)


def test_generated_code_is_what_the_contracts_give(tmp_path: Path) -> None:
    generate(tmp_path)
    fresh = modules(tmp_path / "medserve" / "wire")
    assert fresh == modules(WIRE)
    _, different, missing = filecmp.cmpfiles(
        tmp_path / "medserve" / "wire", WIRE, fresh, shallow=False
    )
    assert not different + missing, "run `make protos` and commit what changes"


def test_descriptor_set_holds_every_contract_and_its_imports(tmp_path: Path) -> None:
    generate(tmp_path, "--protoset", str(tmp_path / "build" / "all.protoset"))
    content = (tmp_path / "build" / "all.protoset").read_bytes()
    names = {file.name for file in FileDescriptorSet.FromString(content).file}
    assert {
        "google/rpc/status.proto",
        "medserve/v1/imaging.proto",
        "medserve/v1/releases.proto",
        "medserve/wire/inference.proto",
        "medserve/wire/management.proto",
        "medserve/wire/open_inference.proto",
    } <= names


def test_the_contracts_compile_as_they_are_shipped(tmp_path: Path) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(ROOT / "protos", protos)
    names = [str(path.relative_to(protos)) for path in sorted(protos.rglob("*.proto"))]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", "--python_out=."]
    subprocess.run([*command, *names], cwd=tmp_path, check=True)  # each file with its own imports
    assert len(list(tmp_path.rglob("*_pb2.py"))) == len(names)


def test_every_element_has_a_comment(tmp_path: Path) -> None:
    generate(tmp_path, "--protoset", str(tmp_path / "all"))
    for file in FileDescriptorSet.FromString((tmp_path / "all").read_bytes()).file:
        if file.name.startswith("medserve/"):
            commented = {
                tuple(place.path)
                for place in file.source_code_info.location
                if place.leading_comments.strip()
            }
            assert elements(file) - commented == set(), file.name


@pytest.mark.skipif(not BUF.is_file(), reason="needs buf (the dev extra)")
def test_contracts_are_clean_for_buf(tmp_path: Path) -> None:
    generate(tmp_path, "--protoset", str(tmp_path / "all"))
    command = [str(BUF), "lint", f"{tmp_path / 'all'}#format=binpb"]
    command += ["--config", str(ROOT / "protos" / "buf.yaml")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("name", ["inference", "management"])
def test_contract_equals_the_one_inside_torchserve(name: str, tmp_path: Path) -> None:
    ts = pytest.importorskip("ts", reason="TorchServe's jar (serve extra) holds its contracts")
    with zipfile.ZipFile(Path(ts.__file__).parent / "frontend" / "model-server.jar") as jar:
        jar.extract(f"{name}.proto", tmp_path)
        jar.extract("google/rpc/status.proto", tmp_path)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path}", f"{name}.proto"]
    subprocess.run([*command, f"--descriptor_set_out={tmp_path / 'theirs'}"], check=True)
    generate(tmp_path, "--protoset", str(tmp_path / "ours"))
    theirs = contract(tmp_path / "theirs", f"{name}.proto")
    assert contract(tmp_path / "ours", f"medserve/wire/{name}.proto") == theirs


def test_open_inference_is_a_part_of_the_contract_that_tritonclient_speaks(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient", reason="needs tritonclient (the dev extra)")
    theirs, config = of_tritonclient("service_pb2"), of_tritonclient("model_config_pb2")
    generate(tmp_path, "--protoset", str(tmp_path / "ours"))
    ours = contract(tmp_path / "ours", "medserve/wire/open_inference.proto")
    assert ours.package == theirs.package
    their_methods = {method.name: bare(method) for method in theirs.service[0].method}
    for method in ours.service[0].method:
        assert bare(method) == their_methods[method.name]
    their_messages = {message.name: message for message in theirs.message_type}
    of_config = {message.name: message for message in config.message_type}
    for message in ours.message_type:
        if message.name in of_config:  # of a model's configuration only what means something here
            fields = list(of_config[message.name].field)
            assert all(field in fields for field in without_json_names(message).field)
        else:
            assert without_json_names(message) == their_messages[message.name]
    assert list(ours.enum_type) == [each for each in config.enum_type if each.name == "DataType"]


def of_tritonclient(module: str) -> FileDescriptorProto:
    """Return a contract of tritonclient, whose messages cannot live in one process with ours."""
    script = f"from tritonclient.grpc import {module}; import sys; "
    script += f"sys.stdout.buffer.write({module}.DESCRIPTOR.serialized_pb)"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return FileDescriptorProto.FromString(run.stdout)


def modules(wire: Path) -> list[Path]:
    """What is generated, relative to the folder."""
    return sorted(path.relative_to(wire) for path in wire.rglob("*_pb2*") if path.suffix != ".pyc")


def bare(method: MethodDescriptorProto) -> MethodDescriptorProto:
    """A method without its options, which are not on the wire."""
    copy = MethodDescriptorProto()
    copy.CopyFrom(method)
    copy.ClearField("options")
    return copy


def without_json_names(message: DescriptorProto) -> DescriptorProto:
    """A message as tritonclient's module keeps it: names of members in JSON are left out."""
    copy = DescriptorProto()
    copy.CopyFrom(message)
    for field in copy.field:
        field.ClearField("json_name")
    for nested in copy.nested_type:
        nested.CopyFrom(without_json_names(nested))
    return copy


def elements(file: FileDescriptorProto) -> set[tuple[int, ...]]:
    """Where services, methods, messages and fields stand: paths of descriptor.proto's numbers."""
    found = {(6, s, *m) for s, each in enumerate(file.service) for m in members(each.method, 2)}
    for place, message in enumerate(file.message_type):
        found |= of_message(message, (4, place))
    return found


def of_message(message: DescriptorProto, path: tuple[int, ...]) -> set[tuple[int, ...]]:
    found = {(*path, *m) for m in members(message.field, 2)}
    for place, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            found |= of_message(nested, (*path, 3, place))
    return found


def members(items: Sized, number: int) -> list[tuple[int, ...]]:
    """The element itself and each of its members."""
    return [(), *((number, place) for place in range(len(items)))]


def contract(protoset: Path, name: str) -> FileDescriptorProto:
    """What of one contract is on the wire: neither its file's name nor its layout and comments."""
    [file] = [
        file
        for file in FileDescriptorSet.FromString(protoset.read_bytes()).file
        if file.name == name
    ]
    file.ClearField("name")
    file.ClearField("source_code_info")
    file.dependency.sort()
    file.message_type.sort(key=lambda message: message.name)
    return file
