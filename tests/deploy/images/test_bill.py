"""The bill of materials: every thing once, in the form that scanners read."""

from __future__ import annotations

import importlib
import importlib.resources
import json
from typing import Any

import pytest
from referencing import Registry, Resource

import docker
from scripts import bill, images

LISTED = """
{"kind": "pypi", "name": "torch_model_archiver", "version": "0.12.0", "license": ""}
{"kind": "pypi", "name": "torch", "version": "2.13.0+cpu", "license": "BSD-3-Clause"}
{"kind": "pypi", "name": "torch", "version": "2.13.0+cpu", "license": "BSD-3-Clause"}
{"kind": "deb", "name": "tini", "version": "0.19.0-1", "arch": "amd64"}
{"kind": "java", "name": "openjdk", "version": "17.0.21+9-Debian-1deb12u1"}
"""


def _validate(document: dict[str, Any]) -> None:
    """Against the published schema of CycloneDX 1.6."""
    jsonschema = importlib.import_module("jsonschema")  # has no types
    schemas = importlib.resources.files("cyclonedx.schema") / "_res"
    names = ("spdx.SNAPSHOT", "jsf-0.82.SNAPSHOT", "bom-1.6.SNAPSHOT")
    read = [json.loads((schemas / f"{name}.schema.json").read_text("utf-8")) for name in names]
    registry: Registry[Any] = Registry()
    for each in read:
        registry = registry.with_resource(each["$id"], Resource.from_contents(each))
    jsonschema.Draft7Validator(read[-1], registry=registry).validate(document)


def test_each_kind_gets_the_address_that_scanners_look_up() -> None:
    found = {each["purl"] for each in bill.components(LISTED)}
    assert found == {
        "pkg:pypi/torch-model-archiver@0.12.0",
        "pkg:pypi/torch@2.13.0%2Bcpu",
        "pkg:deb/debian/tini@0.19.0-1?arch=amd64",
        "pkg:generic/openjdk@17.0.21%2B9-Debian-1deb12u1",
    }


def test_what_is_listed_twice_is_there_once() -> None:
    references = [each["bom-ref"] for each in bill.components(LISTED)]
    assert len(references) == len(set(references)) == 4


@pytest.mark.docker
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("target", "named", "missing"),
    [
        ("cpu", {"torch", "torchserve", "openvino", "medserve", "openjdk", "tini"}, {"sympy"}),
        ("gateway", {"grpcio", "fastapi", "medserve", "tini"}, {"torch", "openjdk"}),
    ],
)
def test_the_bill_of_an_image_is_valid_and_names_what_is_in_it(
    built: docker.DockerClient, target: str, named: set[str], missing: set[str]
) -> None:
    document = bill.bill_of(built, images.tag(target))
    names = {each["name"] for each in document["components"]}
    assert named <= names
    assert not missing & names
    pytest.importorskip("cyclonedx.schema", reason="needs cyclonedx-python-lib for the schema")
    _validate(document)
