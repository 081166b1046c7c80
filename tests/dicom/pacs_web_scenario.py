"""Orthanc as a client of a node's DICOMweb face: it sends by STOW-RS, finds and fetches.

Runs in a network namespace (`unshare --net`), for Orthanc 1.10 listens on every address. Prints
what happened as JSON. Argument: a folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from medserve.dicom.intake import Intake
from medserve.dicom.spool import Spool
from medserve.dicom.web.app import WebLimits, create_app
from medserve.dicom.web.server import WebServer
from medserve.settings import Address
from tests.dicom.pacs_scenario import HTTP, get, raise_loopback, start_archive, wait
from tests.dicom.series import series, write

_PORT = 18013


def post(path: str, content: Any) -> Any:
    """Ask the archive to do something."""
    request = urllib.request.Request(HTTP + path, json.dumps(content).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def main(place: str) -> None:
    """Send a study from the archive to the face, delete it there, and let it be fetched back."""
    folder = Path(place)
    raise_loopback()
    spool = Spool(folder / "state")
    intake = Intake(spool, lambda: True, lambda _: None)
    address = Address("127.0.0.1", _PORT)
    face = WebServer(create_app(spool, intake, None, WebLimits(2**30, ("127.0.0.1",))), address)
    face.start()
    web = {"Enable": True, "Root": "/dicom-web/",
           "Servers": {"face": [f"http://127.0.0.1:{_PORT}/dicom-web/"]}}  # fmt: skip
    archive = start_archive(folder, LuaScripts=[], DicomWeb=web)
    try:
        wait(lambda: get("/system")["DicomAet"] == "PACS")
        files = write(folder / "study", series(1, slices=9))
        subprocess.run(
            ["storescu", "-aec", "PACS", "127.0.0.1", "14242", *map(str, files)], check=True
        )
        wait(lambda: get("/statistics")["CountInstances"] == 9)
        [study] = get("/studies")
        sent = post("/dicom-web/servers/face/stow", {"Resources": [study], "Synchronous": True})
        taken = sum(len(spool.images(each.id)) for each in spool.open_series())
        uid = get(f"/studies/{study}")["MainDicomTags"]["StudyInstanceUID"]
        found = post("/dicom-web/servers/face/get",
                     {"Uri": "/studies", "Arguments": {"PatientID": "S1-1"}})  # fmt: skip
        delete = urllib.request.Request(f"{HTTP}/studies/{study}", method="DELETE")
        with urllib.request.urlopen(delete, timeout=60):
            pass
        empty = get("/statistics")["CountInstances"]
        post("/dicom-web/servers/face/retrieve",
             {"Resources": [{"Study": uid}], "Synchronous": True})  # fmt: skip
        wait(lambda: get("/statistics")["CountInstances"] == 9)
    finally:
        archive.terminate()
        archive.wait()
        face.stop()
        spool.close()
    series_of = [each["00201206"]["Value"] for each in found]
    print(json.dumps({"taken": taken, "found": series_of, "empty": empty, "sent": bool(sent)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
