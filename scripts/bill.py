"""The bill of materials of an image, as CycloneDX 1.6: what is in it, by whom, in which version.

Read inside the image itself, so nothing that was installed along is missed: Python distributions
by their metadata, Debian packages by dpkg's list, Java by its release file.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import docker
from medserve.errors import ConfigError

__all__ = ["bill_of", "components"]

# One line of JSON for each thing; runs in the image, which has Python but none of our scripts.
_LIST = r"""
import importlib.metadata as m, json, pathlib, subprocess
for d in m.distributions():
    license = d.metadata["License-Expression"] or d.metadata["License"] or ""
    print(json.dumps({"kind": "pypi", "name": d.metadata["Name"], "version": d.version,
                      "license": license.strip().splitlines()[0] if license.strip() else ""}))
form = "${Package}\t${Version}\t${Architecture}\n"
listed = subprocess.run(["dpkg-query", "--show", "--showformat", form],
                        capture_output=True, text=True, check=True).stdout
for line in listed.splitlines():
    name, version, architecture = line.split("\t")
    print(json.dumps({"kind": "deb", "name": name, "version": version, "arch": architecture}))
release = pathlib.Path("/opt/java/release")
if release.exists():
    pairs = dict(line.split("=", 1) for line in release.read_text().splitlines())
    version = pairs["JAVA_RUNTIME_VERSION"] if "JAVA_RUNTIME_VERSION" in pairs else pairs["JAVA_VERSION"]
    print(json.dumps({"kind": "java", "name": "openjdk", "version": version.strip('"')}))
"""  # noqa: E501


def bill_of(client: docker.DockerClient, image: str) -> dict[str, Any]:
    """The document for one image.

    Raises:
        ConfigError: the image cannot be read.
    """
    try:
        output = client.containers.run(
            image,
            ["-c", _LIST],
            entrypoint="python",
            network_mode="none",
            read_only=True,
            remove=True,
        )
        identity = client.images.get(image).id
    except docker.errors.DockerException as error:
        raise ConfigError(f"{image} cannot be read: {error}") from error
    name, _, version = image.partition(":")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": name,
                "version": version,
                "properties": [{"name": "docker:image-id", "value": identity}],
            },
        },
        "components": components(output.decode()),
    }


def components(listed: str) -> list[dict[str, Any]]:
    """One component for each line of the listing, sorted, none twice."""
    lines = (json.loads(line) for line in listed.splitlines() if line)
    found = {json.dumps(_component(entry), sort_keys=True) for entry in lines}
    return sorted((json.loads(each) for each in found), key=lambda each: str(each["bom-ref"]))


def _component(entry: dict[str, str]) -> dict[str, Any]:
    kind, name, version = entry["kind"], entry["name"], entry["version"]
    match kind:
        case "pypi":
            address = f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version)}"
        case "deb":
            address = f"pkg:deb/debian/{name}@{quote(version)}?arch={entry['arch']}"
        case _:
            address = f"pkg:generic/{name}@{quote(version)}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": address,
        "name": name,
        "version": version,
        "purl": address,
    }
    if entry.get("license"):
        component["licenses"] = [{"license": {"name": entry["license"]}}]
    return component
