from __future__ import annotations

from pathlib import Path

import pytest

from handlers.request import parse
from handlers.uploads import with_upload
from medserve.errors import InvalidRequestError, ServerFailedError
from medserve.spec import InputKind, InputSpec

NAME = "0123456789abcdef" * 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shared = tmp_path / "uploads"
    shared.mkdir()
    (shared / NAME).write_bytes(b"volume")
    (tmp_path / "secret").write_bytes(b"secret")
    monkeypatch.setenv("MEDSERVE_UPLOAD_DIR", str(shared))
    return shared


def test_a_request_that_names_a_file_is_one_with_the_file(folder: Path) -> None:
    request = parse({"data_file": bytearray(NAME.encode())}, InputSpec((InputKind.NIFTI,), (8, 8)))
    assert request.payloads == (b"volume",)
    assert not request.packed


@pytest.mark.parametrize(
    "name",
    [b"../secret", b"", NAME[:-1].encode(), NAME.encode() + b"\n", NAME.upper().encode(), "x"],
)
def test_no_other_file_can_be_named(folder: Path, name: bytes | str) -> None:
    with pytest.raises(InvalidRequestError, match="data_file"):
        with_upload({"data_file": name})


def test_a_file_beside_data_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="both"):
        with_upload({"data_file": NAME.encode(), "data": b"x"})


def test_a_file_that_is_not_there_says_what_to_share(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerFailedError, match="share"):
        with_upload({"data_file": b"f" * 32})
    monkeypatch.delenv("MEDSERVE_UPLOAD_DIR")
    with pytest.raises(ServerFailedError, match="share"):
        with_upload({"data_file": NAME.encode()})
