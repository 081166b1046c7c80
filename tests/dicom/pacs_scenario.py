"""Orthanc, which forwards whatever it stores, and a node, alone on a loopback of their own.

Runs in a network namespace (`unshare --net`), for Orthanc 1.10 listens on every address. Prints
what happened as JSON. Arguments: a folder, and `c-store`, `stow` or `research`: de-identified
copies of what a hospital sends to the node itself, with their results.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medserve.dicom.pull import fetch
from tests.dicom.series import RULES, series, write

HTTP = "http://127.0.0.1:18042"
_UP = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
_SIOCSIFFLAGS = 0x8914
_PATIENCE_S = 60.0
# What the archive does with each object that it stores: it sends all of them to the node.
_RESEARCH = 'destination = ["PACS@127.0.0.1:14242"]\ndeidentify = true\n'
_SENT_TO = (["PACS", "127.0.0.1", "14242"], ["NODE", "127.0.0.1", "11112"])
_FORWARD = 'function OnStoredInstance(id, tags, metadata) SendToModality(id, "node") end'


def raise_loopback() -> None:
    """Let the loopback of a new namespace carry packets."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", _UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def start_archive(folder: Path, **changes: Any) -> subprocess.Popen[bytes]:
    """Start Orthanc with a database in the folder; `changes` win in its configuration."""
    (folder / "forward.lua").write_text(_FORWARD)
    (folder / "orthanc.json").write_text(
        json.dumps(
            {
                "Name": "PACS",
                "DicomAet": "PACS",
                "DicomPort": 14242,
                "HttpPort": 18042,
                "RemoteAccessAllowed": False,
                "StorageDirectory": str(folder / "db"),
                "IndexDirectory": str(folder / "db"),
                "DicomModalities": {"node": ["NODE", "127.0.0.1", 11112]},
                "DicomAlwaysAllowFind": True,
                "LuaScripts": [str(folder / "forward.lua")],
                "Plugins": ["/usr/share/orthanc/plugins"],
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                **changes,
            }
        )
    )
    log = (folder / "orthanc.log").open("wb")
    return subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)


def get(path: str) -> Any:
    """Return what the archive says over HTTP."""
    with urllib.request.urlopen(HTTP + path, timeout=10) as answer:
        content = answer.read()
    return json.loads(content)


def wait(done: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            if done():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.2)


def modalities() -> dict[str, int]:
    """Return how many objects of each modality the archive has."""
    counts: dict[str, int] = {}
    for each in get("/series"):
        found = get(f"/series/{each}")
        name = found["MainDicomTags"]["Modality"]
        counts[name] = counts.get(name, 0) + len(found["Instances"])
    return counts


def main(place: str, way: str) -> None:
    """Send one study to the archive, and wait for what comes back."""
    folder = Path(place)
    raise_loopback()
    archive = start_archive(folder)
    destination = f"{HTTP}/dicom-web/studies" if way == "stow" else "PACS@127.0.0.1:14242"
    rules = folder / "rules.toml"
    more = _RESEARCH if way == "research" else 'query = "PACS@127.0.0.1:14242"\n'
    rules.write_text(RULES.format(quiet_s=2) + more)
    node_log = (folder / "node.log").open("w")
    node = subprocess.Popen(
        [sys.executable, "-m", "tests.dicom.node_process", str(folder / "state"), str(rules),
         "11112", destination],
        stdout=subprocess.PIPE, stderr=node_log,
    )  # fmt: skip
    try:
        assert node.stdout is not None
        node.stdout.readline()
        wait(lambda: get("/system")["DicomAet"] == "PACS")
        files = write(folder / "study", series(1, slices=9))
        subprocess.run(
            ["storescu", "-aec", *_SENT_TO[way == "research"], *map(str, files)],
            check=True,
        )
        wait(lambda: len(modalities()) == 3)
        time.sleep(5.0)  # for results of results, if there were any
        [study] = get("/studies")
        (folder / "pulled").mkdir()
        uid = get(f"/studies/{study}")["MainDicomTags"]["StudyInstanceUID"]
        found = {
            "pulled": len(fetch(f"{HTTP}/dicom-web", uid, None, folder / "pulled")),
            "modalities": modalities(),
            "patient": get(f"/studies/{study}")["PatientMainDicomTags"]["PatientID"],
            "log": (folder / "node.log").read_text(),
            "tags": json.dumps([get(f"/instances/{each}/tags") for each in get("/instances")]),
            "archive_log": (folder / "orthanc.log").read_text(),
        }
        for name in ("SEG", "SR"):
            [which] = [each for each in get("/series")
                       if get(f"/series/{each}")["MainDicomTags"]["Modality"] == name]  # fmt: skip
            [instance] = get(f"/series/{which}")["Instances"]
            with urllib.request.urlopen(f"{HTTP}/instances/{instance}/file") as answer:
                (folder / f"{name}.dcm").write_bytes(answer.read())
        print(json.dumps(found))
    finally:
        for process in (node, archive):
            process.terminate()
            process.wait(20)


if __name__ == "__main__":
    main(*sys.argv[1:])
