"""A batch whose manifest names studies of Orthanc by their DICOMweb addresses.

Runs in a network namespace (`unshare --net`), for Orthanc 1.10 listens on every address. Prints
what happened as JSON. Argument: a folder.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pydicom import dcmread

from tests.batch.stand_in import StandIn, run_batch
from tests.dicom.pacs_scenario import HTTP, get, raise_loopback, start_archive, wait
from tests.dicom.series import series, write


def main(place: str) -> None:
    """Store two studies, answer them, and answer them again after one has grown."""
    folder = Path(place)
    raise_loopback()
    archive = start_archive(folder, LuaScripts=[])
    try:
        wait(lambda: get("/system")["DicomAet"] == "PACS")
        first = write(folder / "first", series(1, slices=9))
        second = write(folder / "second", series(2, slices=5))
        store = ["storescu", "-aec", "PACS", "127.0.0.1", "14242"]
        subprocess.run([*store, *map(str, [*first, *second[:-1]])], check=True)
        wait(lambda: get("/statistics")["CountInstances"] == 13)
        uids = [get(f"/studies/{each}")["MainDicomTags"]["StudyInstanceUID"]
                for each in get("/studies")]  # fmt: skip
        manifest = folder / "studies.csv"
        urls = [f"{HTTP}/dicom-web/studies/{uid}" for uid in [*uids, "1.2.3"]]
        manifest.write_text("\n".join(["path", *urls]), encoding="utf-8")
        asker, again, grown = StandIn(), StandIn(), StandIn()
        counts = run_batch(manifest, folder / "out", asker)
        repeated = run_batch(manifest, folder / "out", again)
        subprocess.run([*store, str(second[-1])], check=True)
        wait(lambda: get("/statistics")["CountInstances"] == 14)
        changed = run_batch(manifest, folder / "out", grown)
    finally:
        archive.terminate()
        archive.wait()
    smaller, larger = sorted(map(_objects, asker.asked), key=len)
    print(json.dumps({
        "counts": counts, "repeated": repeated, "changed": changed,
        "slices": [len(smaller), len(larger)],
        "grown": [len(_objects(each)) for each in grown.asked],
        "whole": _pixels(larger) == _pixels(path.read_bytes() for path in first),
    }))  # fmt: skip


def _objects(content: bytes) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as sent:
        return [sent.read(name) for name in sent.namelist()]


def _pixels(objects: Iterable[bytes]) -> set[bytes]:
    return {dcmread(io.BytesIO(each)).PixelData for each in objects}


if __name__ == "__main__":
    main(*sys.argv[1:])
