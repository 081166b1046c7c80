"""Studies behind URLs."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from medserve.batch.inputs import UnreadableInputError, read_input
from medserve.batch.work import Became
from medserve.client import Limits
from medserve.errors import PayloadTooLargeError
from tests.batch.stand_in import StandIn, run_batch

fsspec = pytest.importorskip("fsspec", reason="the extra batch is not installed")


@pytest.fixture
def bucket() -> Iterator[str]:
    """An object store in memory."""
    store = fsspec.filesystem("memory")
    store.pipe("/studies/a.nii.gz", b"study a")
    store.pipe("/studies/b.nii.gz", b"study b")
    yield "memory://studies"
    store.rm("/studies", recursive=True)


def manifest(folder: Path, *urls: str) -> Path:
    path = folder / "m.csv"
    path.write_text("\n".join(["path", *urls]), encoding="utf-8")
    return path


def test_objects_are_answered_once_and_again_when_they_change(bucket: str, tmp_path: Path) -> None:
    batch, out = manifest(tmp_path, f"{bucket}/a.nii.gz", f"{bucket}/b.nii.gz"), tmp_path / "out"
    assert run_batch(batch, out, StandIn()) == {Became.ANSWERED: 2}
    assert run_batch(batch, out, StandIn()) == {Became.KEPT: 2}
    fsspec.filesystem("memory").pipe("/studies/b.nii.gz", b"study c")  # of the same size
    again = StandIn()
    assert run_batch(batch, out, again) == {Became.KEPT: 1, Became.ANSWERED: 1}
    assert again.asked == [b"study c"]


@pytest.mark.parametrize("url", ["memory://studies/none", "unheard-of://x/y", "s3:///"])
def test_an_object_that_cannot_be_read_costs_its_own_row(
    bucket: str, tmp_path: Path, url: str
) -> None:
    batch = manifest(tmp_path, url, f"{bucket}/a.nii.gz")
    found = run_batch(batch, tmp_path / "out", StandIn())
    assert found == {Became.FAILED: 1, Became.ANSWERED: 1}


def test_an_object_over_the_limit_is_refused(bucket: str) -> None:
    with pytest.raises(PayloadTooLargeError):
        read_input(f"{bucket}/a.nii.gz", Limits(message_bytes=3))


@pytest.mark.loopback
def test_a_file_behind_http_is_read(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="the extra batch is not installed")
    (tmp_path / "a.nii.gz").write_bytes(b"study a")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": _nothing})
    handler = functools.partial(quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            assert read_input(f"{url}/a.nii.gz", Limits()).content == b"study a"
            with pytest.raises(UnreadableInputError):
                read_input(f"{url}/b.nii.gz", Limits())
        finally:
            server.shutdown()
            thread.join()


def _nothing(*arguments: object) -> None:
    """Write no line for a request."""
