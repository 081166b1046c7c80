"""Studies behind URLs."""

from __future__ import annotations

import functools
import http.server
import io
import logging
import socket
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medserve.batch.inputs import read_input
from medserve.batch.stores import UnreadableInputError
from medserve.batch.studies import Study
from medserve.batch.work import Became
from medserve.client import Limits
from medserve.errors import ConfigError, PayloadTooLargeError
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
        read_input(Study("x", f"{bucket}/a.nii.gz"), Limits(message_bytes=3))


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
            assert read_input(Study("x", f"{url}/a.nii.gz"), Limits()).content == b"study a"
            with pytest.raises(UnreadableInputError):
                read_input(Study("x", f"{url}/b.nii.gz"), Limits())
        finally:
            server.shutdown()
            thread.join()


# ---- studies of a DICOMweb archive

UID = "/dicom-web/studies/1.2.3"
HEAD = b"Content-Type: application/dicom\r\n\r\n"


@contextmanager
def archive(answers: list[tuple[int, bytes]]) -> Iterator[str]:
    """Give the URL of a service that answers so, one after the other, in pieces of unknown size."""

    class Archive(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "application/dicom" in self.headers["Accept"]
            status, body = answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Type", "multipart/related; boundary=cut")
            self.end_headers()
            for first in range(0, len(body), 7):
                self.wfile.write(body[first : first + 7])
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Archive) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{UID}"
        finally:
            server.shutdown()
            thread.join()


def multipart(*objects: bytes) -> bytes:
    return b"".join(b"--cut\r\n" + HEAD + each + b"\r\n" for each in objects) + b"--cut--\r\n"


@pytest.mark.loopback
def test_a_study_of_an_archive_is_answered_once_in_whatever_order_it_comes(tmp_path: Path) -> None:
    answers = [(200, multipart(b"one", b"two\r\n")), (200, multipart(b"two\r\n", b"one"))]
    with archive(answers) as url:
        batch, first = manifest(tmp_path, url), StandIn()
        assert run_batch(batch, tmp_path / "out", first) == {Became.ANSWERED: 1}
        assert run_batch(batch, tmp_path / "out", StandIn()) == {Became.KEPT: 1}
    with zipfile.ZipFile(io.BytesIO(first.asked[0])) as sent:
        assert [sent.read(name) for name in sent.namelist()] == [b"one", b"two\r\n"]


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, b""), "is not there"),
        ((204, b""), "does not have"),
        ((401, b""), "may not be read with the credentials"),
        ((500, b""), "cannot be read"),
        ((200, b"<html>"), "breaks off"),
        ((200, multipart(b"one")[:-8]), "breaks off"),
        ((200, b"--cut\r\nno head\r\n--cut--"), "without an object"),
    ],
)
def test_a_study_that_an_archive_does_not_give_says_why(
    answer: tuple[int, bytes], reason: str
) -> None:
    with archive([answer]) as url, pytest.raises(UnreadableInputError, match=reason):
        read_input(Study("x", url), Limits())


@pytest.mark.loopback
def test_a_study_over_the_limit_is_refused_while_it_comes() -> None:
    with archive([(200, multipart(bytes(10_000)))]) as url, pytest.raises(PayloadTooLargeError):
        read_input(Study("x", url), Limits(message_bytes=5000))


# ---- a real S3 server


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that asks for credentials, and the client of its owner."""
    server_of = pytest.importorskip("moto.server", reason="tests/batch/requirements.txt")
    s3fs = pytest.importorskip("s3fs", reason="tests/batch/requirements.txt")
    boto3 = pytest.importorskip("boto3", reason="tests/batch/requirements.txt")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    owner = boto3.client("s3", "us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    owner.create_bucket(Bucket="studies")
    owner.put_object(Bucket="studies", Key="a.nii.gz", Body=b"study a" * 10**6)
    try:
        yield owner
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.mark.loopback
def test_objects_of_s3_are_answered_once_and_again_when_they_change(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    batch = manifest(tmp_path, "s3://studies/a.nii.gz", "s3://studies/b.nii.gz", "s3://none/a")
    first, out = StandIn(), tmp_path / "out"
    assert run_batch(batch, out, first) == {Became.ANSWERED: 1, Became.FAILED: 2}
    assert first.asked == [b"study a" * 10**6]
    store.put_object(Bucket="studies", Key="b.nii.gz", Body=b"study b")
    assert run_batch(batch, out, StandIn()) == {
        Became.KEPT: 1, Became.ANSWERED: 1, Became.FAILED: 1,
    }  # fmt: skip
    store.put_object(Bucket="studies", Key="b.nii.gz", Body=b"study c")
    again = StandIn()
    run_batch(batch, out, again)
    assert again.asked == [b"study c"]


@pytest.mark.loopback
def test_a_run_without_credentials_ends_before_it_fails_every_study(
    store: Any, tmp_path: Path
) -> None:
    batch = manifest(tmp_path, "s3://studies/a.nii.gz", "s3://studies/b.nii.gz")
    with pytest.raises(ConfigError, match="AWS_PROFILE"):
        run_batch(batch, tmp_path / "out", StandIn())


@pytest.mark.loopback
def test_an_object_that_these_credentials_do_not_open_costs_its_own_row(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pytest.importorskip("moto.core.responses").ActionAuthenticatorMixin
    monkeypatch.setattr(settings, "request_count", 0)
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UnreadableInputError, match="may not be read with the credentials"):
        read_input(Study("x", "s3://studies/a.nii.gz"), Limits())


# ---- a real server of Google Cloud Storage


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address where Google Cloud Storage is looked for, and nothing but the environment."""
    monkeypatch.setenv(
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
    )  # asks by gRPC, which is not there
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", "/nowhere")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    gcsfs = pytest.importorskip("gcsfs", reason="tests/batch/requirements.txt")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield address
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for no credentials, as FSSPEC_GS_TOKEN=anon does."""
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})


@pytest.mark.loopback
def test_objects_of_google_are_answered_once_and_again_when_they_change(
    google: str, anybody: None, tmp_path: Path
) -> None:
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="tests/batch/requirements.txt"
    )
    port = int(google.rpartition(":")[2])
    with emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="studies"):
        owner = fsspec.filesystem("gs", skip_instance_cache=True)
        owner.pipe("studies/a.nii.gz", b"study a" * 10**5)
        batch = manifest(tmp_path, "gs://studies/a.nii.gz", "gs://studies/b.nii.gz", "gs://none/a")
        first, out = StandIn(), tmp_path / "out"
        assert run_batch(batch, out, first) == {Became.ANSWERED: 1, Became.FAILED: 2}
        assert first.asked == [b"study a" * 10**5]
        owner.pipe("studies/a.nii.gz", b"study c" * 10**5)
        again = StandIn()
        run_batch(batch, out, again)
        assert again.asked == [b"study c" * 10**5]
        assert run_batch(batch, out, StandIn()) == {Became.KEPT: 1, Became.FAILED: 2}


@pytest.mark.loopback
def test_a_run_without_credentials_of_google_ends_before_it_fails_every_study(
    google: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        run_batch(manifest(tmp_path, "gs://studies/a.nii.gz"), tmp_path / "out", StandIn())


@pytest.mark.loopback
def test_an_object_of_google_that_is_refused_says_so(
    google: str, anybody: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(UnreadableInputError, match="may not be read with the credentials"):
            read_input(Study("x", "gs://studies/a.nii.gz"), Limits())
        server.shutdown()


def test_a_store_of_azure_is_refused_by_name() -> None:
    with pytest.raises(UnreadableInputError, match="Azure"):
        read_input(Study("x", "az://studies/a.nii.gz"), Limits())


def _nothing(*arguments: object) -> None:
    """Write no line for a request."""
