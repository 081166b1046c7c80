"""OHIF in Chromium before Orthanc, alone on a loopback of their own.

Prints as JSON, for each study, how many images OHIF's labelmap covers and how many of its voxels
are others than the mask's. Arguments: a folder, and the folder `dist` of npm's `@ohif/app`.
"""

from __future__ import annotations

import http.client
import json
import mimetypes
import shutil
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from pydicom import Dataset
from pydicom.uid import generate_uid

from medserve.imaging.codecs import dicom_series
from medserve.imaging.geometry import Geometry
from medserve.results.files import dicom_seg
from medserve.results.segmentation import Segmentation
from tests.dicom.pacs_scenario import HTTP, get, raise_loopback, start_archive, wait
from tests.dicom.series import CODES, LABELS, PROVENANCE
from tests.volume_phantoms import as_bytes, dicom_slices, enhanced_dicom, oblique, ramp, zipped

_PATIENCE_S = 60.0
_SHAPE = (16, 24, 9)  # rows of bits that are no whole bytes are read by few archives
_FLAGS = (
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist", "--disable-dev-shm-usage",
)  # fmt: skip
_CONFIG = """
window.config = {
  routerBasename: null, extensions: [], modes: [], customizationService: {}, showStudyList: true,
  maxNumberOfWebWorkers: 2, showLoadingIndicator: true, strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: 'never' }, showCPUFallbackMessage: false,
  maxNumRequests: { interaction: 20, thumbnail: 5, prefetch: 5 },
  defaultDataSourceName: 'archive',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'archive',
    configuration: {
      friendlyName: 'archive', name: 'archive', wadoUriRoot: '/dicom-web',
      qidoRoot: '/dicom-web', wadoRoot: '/dicom-web', qidoSupportsIncludeField: false,
      supportsReject: false, imageRendering: 'wadors', thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true,
      omitQuotationForMultipartRequest: true,
      bulkDataURI: { enabled: true, relativeResolution: 'studies' },
    },
  }],
};
"""
# What OHIF has loaded: for each image of its labelmap the image it lies on, and the labels.
_LABELMAP = """
() => {
  const { cornerstone, cornerstoneTools } = window;
  const [found] = cornerstoneTools?.segmentation?.state.getSegmentations() ?? [];
  const ids = found?.representationData?.Labelmap?.imageIds ?? [];
  return ids.map((id) => {
    const image = cornerstone.cache.getImage(id);
    const source = image.referencedImageId;
    const { SOPInstanceUID } = cornerstone.metaData.get('instance', source);
    const frame = /frames\\/(\\d+)/.exec(source);
    return { sop: SOPInstanceUID, frame: frame ? Number(frame[1]) : 1,
             labels: Array.from(image.voxelManager.getScalarData()) };
  });
}
"""


class Site(BaseHTTPRequestHandler):
    """OHIF's files, and the archive's DICOMweb beside them on one origin."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with a file, the page itself, or what the archive says."""
        path = urlsplit(self.path).path
        if path.startswith("/dicom-web"):
            self._forward()
            return
        if path == "/app-config.js":
            self._answer(200, "text/javascript", _CONFIG.encode())
            return
        file = (self.folder / path.lstrip("/")).resolve()
        if self.folder not in file.parents or not file.is_file():
            file = self.folder / "index.html"
        kind = "application/wasm" if file.suffix == ".wasm" else mimetypes.guess_type(file.name)[0]
        self._answer(200, kind or "application/octet-stream", file.read_bytes())

    def _forward(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(HTTP).netloc, timeout=60)
        headers = {"Accept": self.headers.get("Accept", "*/*")}
        connection.request("GET", self.path, headers=headers)
        answer = connection.getresponse()
        kind = answer.getheader("Content-Type", "application/octet-stream")
        self._answer(answer.status, kind, answer.read())
        connection.close()

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(content)


def studies() -> dict[str, tuple[list[Dataset], bool]]:
    """Return the images of each case, and whether its mask is written as a label map."""
    volume = ramp(Geometry(_SHAPE, oblique().affine))
    flipped = ramp(Geometry(_SHAPE, np.diag([-0.9, 1.1, -2.5, 1.0]) @ np.eye(4)[[1, 0, 2, 3]]))
    return {
        "oblique": (dicom_slices(volume), False),
        "flipped": (dicom_slices(flipped)[::-1], False),
        "enhanced": ([enhanced_dicom(volume, [4, 0, 8, 2, 1, 3, 7, 5, 6])], False),
        "label-map": (dicom_slices(volume), True),
    }


def mask_of(images: list[Dataset], *, is_labelmap: bool) -> tuple[bytes, dict[Any, np.ndarray]]:
    """Return the mask as DICOM, and its labels (rows, columns) by image and number of the frame."""
    source = dicom_series.decode(zipped([as_bytes(each) for each in images]))
    mask = np.zeros(source.geometry.shape, np.uint8)
    mask[1:4, 1:3, 1:3], mask[5:7, 2:6, 2:8], mask[6:, 7:, 4] = 1, 2, 1
    found = Segmentation(mask, source.geometry, LABELS)
    content = dicom_seg.encode(found, source, CODES, PROVENANCE, is_labelmap=is_labelmap)
    planes = {}
    for k in range(mask.shape[2]):
        header = source.sources[min(k, len(source.sources) - 1)]
        planes[str(header.SOPInstanceUID), source.frames[k] + 1] = mask[:, :, k].T
    return content, planes


def store(content: bytes) -> None:
    """Give the archive an object."""
    request = urllib.request.Request(HTTP + "/instances", content, method="POST")
    with urllib.request.urlopen(request, timeout=60):
        pass


def compare(browser: Browser, site: str, study: str, planes: dict[Any, np.ndarray]) -> list[int]:
    """Open the study and its segmentation; returns images and voxels that are not the mask's."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.add_init_script("localStorage.setItem('shownTours', '[\"basicViewerTour\"]')")
    page.goto(f"{site}/viewer?StudyInstanceUIDs={study}")
    labels = _loaded(page, len(planes))
    page.close()
    wrong = 0
    for each in labels:
        expected = planes[each["sop"], each["frame"]]
        found = np.array(each["labels"]).reshape(expected.shape)
        wrong += int(np.count_nonzero(found != expected))
    return [len({(each["sop"], each["frame"]) for each in labels}), wrong]


def _loaded(page: Page, images: int) -> list[dict[str, Any]]:
    page.locator('[data-cy="study-browser-thumbnail-no-image"]').first.dblclick(
        timeout=1000 * _PATIENCE_S
    )
    end = time.monotonic() + _PATIENCE_S
    found: list[dict[str, Any]] = []
    while len(found) != images and time.monotonic() < end:
        page.wait_for_timeout(500)
        found = page.evaluate(_LABELMAP)
    return found


def main(place: str, dist: str) -> None:
    """Store every case, look at each in OHIF, and say what was seen."""
    folder = Path(place)
    raise_loopback()
    archive = start_archive(folder, LuaScripts=[])
    handler = type("Handler", (Site,), {"folder": Path(dist).resolve()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{server.server_address[1]}"
    seen = {}
    try:
        wait(lambda: get("/system")["DicomAet"] == "PACS")
        cases = {}
        for name, (images, is_labelmap) in studies().items():
            study = generate_uid()
            series, frame = generate_uid(), generate_uid()
            for image in images:
                image.StudyInstanceUID, image.SeriesInstanceUID = study, series
                image.FrameOfReferenceUID, image.PatientID = frame, name
                image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                store(as_bytes(image))
            content, planes = mask_of(images, is_labelmap=is_labelmap)
            store(content)
            cases[name] = (study, planes)
        with sync_playwright() as playwright:
            program = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=program, args=[*_FLAGS])
            for name, (study, planes) in cases.items():
                seen[name] = compare(browser, site, study, planes)
            browser.close()
        print(json.dumps(seen))
    finally:
        server.shutdown()
        archive.terminate()
        archive.wait(20)


if __name__ == "__main__":
    main(*sys.argv[1:])
