from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from medserve.dicom import pull
from medserve.dicom.peers import read_destination
from medserve.dicom.pull import fetch
from medserve.dicom.send import forward
from medserve.errors import AuthenticationError, InvalidRequestError, MedserveError
from tests.dicom.archive import running_archive
from tests.dicom.series import series

pytestmark = pytest.mark.loopback

STUDY = "1.2.3"


def multipart(files: list[bytes], preamble: bytes = b"") -> bytes:
    head = b"Content-Type: application/dicom\r\n\r\n"
    parts = b"".join(b"\r\n--cut\r\n" + head + file for file in files)
    return preamble + parts.removeprefix(b"" if preamble else b"\r\n") + b"\r\n--cut--\r\n"


@contextmanager
def service(status: int, body: bytes, asked: list[str] | None = None) -> Iterator[str]:
    class Archive(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            self.send_response(status)
            self.send_header(
                "Content-Type", 'multipart/related; type="application/dicom"; boundary=cut'
            )
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Archive) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web/"
        thread.join()


@pytest.mark.parametrize("block", [1, 7, 4096, 2**20])
@pytest.mark.parametrize("preamble", [b"", b"a preamble"])
def test_every_object_arrives_whole_wherever_the_blocks_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, preamble: bytes
) -> None:
    files = [b"\r\n--cu", b"", b"a\r\n--", b"\r\n\r\nDICM" * 9]
    monkeypatch.setattr(pull, "_BLOCK", block)
    asked: list[str] = []
    with service(200, multipart(files, preamble), asked) as url:
        found = fetch(url, STUDY, "1.2.4", tmp_path)
    assert [path.read_bytes() for path in found] == files
    assert asked == ["/dicom-web/studies/1.2.3/series/1.2.4"]


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AuthenticationError), (404, InvalidRequestError), (204, InvalidRequestError)],
)
def test_an_archive_that_does_not_give_is_an_error_in_words(
    tmp_path: Path, status: int, error: type[MedserveError]
) -> None:
    with service(status, b"") as url, pytest.raises(error):
        fetch(url, STUDY, None, tmp_path)


@pytest.mark.parametrize("cut", [1, 30, 60, -4, -9])
def test_an_answer_that_breaks_off_is_no_study(tmp_path: Path, cut: int) -> None:
    body = multipart([b"first object", b"second object"])[:cut]
    with service(200, body) as url, pytest.raises(MedserveError, match="breaks off"):
        fetch(url, STUDY, None, tmp_path)


def test_what_was_fetched_reaches_a_node_as_it_was_stored(tmp_path: Path) -> None:
    files = series(1)
    with service(200, multipart(files)) as url:
        paths = fetch(url, STUDY, None, tmp_path)
    with running_archive() as sink:
        assert forward("PULL", read_destination(sink.destination), paths) == {0: 5}
        assert len(sink.digests) == 5


def test_a_url_or_identifier_that_cannot_work_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    for url, study in (("ftp://pacs", STUDY), ("http://pacs", "../1")):
        with pytest.raises(MedserveError):
            fetch(url, study, None, tmp_path)
