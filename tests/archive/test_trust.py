"""A signed archive passes where its signer is trusted; any other archive reaches no worker."""

from __future__ import annotations

import io
import json
import resource
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medserve.archive.read import ArchiveInfo, inspect_archive, verify_archive
from medserve.archive.steady_file import open_steadily
from medserve.archive.store import select_archives
from medserve.archive.trust import (
    Trust,
    make_key_pair,
    read_private_key,
    sign_file,
    signature_path,
)
from medserve.archive.unpack import place_archive, unpack_archive
from medserve.batch.processes import ArchiveAsker
from medserve.engine.torchserve import container
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.errors import ArchiveError, ConfigError
from medserve.importing.trying import ask_archive

pytest.importorskip("cryptography", reason="needs the serve extra")

# What the tool model_signing 1.1.1 wrote for a file that holds `hello` and a line feed.
FOREIGN_KEY = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEoAqUBZA2EBmdkGmSMB9QACvmBsLa
qzilETeDck26xN/2Vt1IexkbyKYGaH0cO6Ladkg/VaY8BWUOLgs4JbTcLA==
-----END PUBLIC KEY-----
"""
FOREIGN_SIGNATURE = (Path(__file__).parent / "foreign.sig").read_text(encoding="utf-8")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A private key; the public one lies beside it."""
    make_key_pair(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def trust(keys: Path) -> Trust:
    return Trust.read(keys.with_suffix(".pub.pem"))


@pytest.fixture
def signed(archive: Path, keys: Path, tmp_path: Path) -> Path:
    """A signed copy of `tiny`, alone in its store."""
    (tmp_path / "store").mkdir()
    copy = Path(shutil.copy(archive, tmp_path / "store"))
    sign(copy, keys)
    return copy


@pytest.fixture
def signature(signed: Path) -> bytes:
    """Read once a test: two signatures of one archive differ, in length also."""
    return signature_path(signed).read_bytes()


def sign(archive: Path, key: Path) -> Path:
    return sign_file(archive, inspect_archive(archive).sha256, read_private_key(key))


def changed_bytes(data: st.DataObject, content: bytes) -> bytes:
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = content[place] ^ data.draw(st.integers(1, 255))
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def cut_or_extended(data: st.DataObject, content: bytes) -> bytes:
    if data.draw(st.booleans()):
        return content[: data.draw(st.integers(0, len(content) - 1))]
    return content + data.draw(st.binary(min_size=1, max_size=64))


def changed_members(data: st.DataObject, content: bytes) -> bytes:
    """One member more, one fewer, or one under another name, with a valid zip around them."""
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        members = {name: source.read(name) for name in source.namelist()}
    chosen = data.draw(st.sampled_from(sorted(members)))
    what = data.draw(st.sampled_from(["added", "removed", "renamed"]))
    if what == "added":
        members[f"{chosen}x"] = data.draw(st.binary(max_size=16))
    else:
        removed = members.pop(chosen)
        if what == "renamed":
            members[f"{chosen}x"] = removed
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as packed:
        for name, member in members.items():
            packed.writestr(name, member)
    return target.getvalue()


@pytest.mark.parametrize("change", [changed_bytes, cut_or_extended, changed_members])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_change_of_any_kind_is_refused(
    change: Callable[[st.DataObject, bytes], bytes],
    archive: Path,
    signed: Path,
    trust: Trust,
    data: st.DataObject,
) -> None:
    signed.write_bytes(change(data, archive.read_bytes()))
    with pytest.raises(ArchiveError, match="is not what was signed"):
        verify_archive(signed, trust)


def test_a_flipped_byte_of_a_zip_header_is_refused(signed: Path, trust: Trust) -> None:
    with zipfile.ZipFile(signed) as opened:
        offset = opened.getinfo("model.onnx").header_offset + 10  # its time, which nobody reads
    content = bytearray(signed.read_bytes())
    content[offset] ^= 1
    signed.write_bytes(content)
    with pytest.raises(ArchiveError, match="is not what was signed"):
        verify_archive(signed, trust)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_change_of_the_signature_is_never_taken_for_one(
    signed: Path, signature: bytes, trust: Trust, data: st.DataObject
) -> None:
    signature_path(signed).write_bytes(changed_bytes(data, signature))
    try:
        found = verify_archive(signed, trust)
    except ArchiveError:
        return
    assert found.signed_by == trust.check(signed, found.sha256)  # a byte that no reader looks at


def test_a_signed_archive_passes_and_stays_as_it_is(
    archive: Path, signed: Path, trust: Trust
) -> None:
    assert verify_archive(signed, trust).name == "tiny"
    assert signed.read_bytes() == archive.read_bytes()


def test_the_environment_asks_for_signatures(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_TRUST", str(keys.with_suffix(".pub.pem")))
    assert verify_archive(signed).signed_by
    signature_path(signed).unlink()
    with pytest.raises(ArchiveError, match=r"is not signed: expected its signature in tiny-1\.0"):
        verify_archive(signed)


def test_trust_in_a_file_that_is_not_there_loads_nothing(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_TRUST", str(tmp_path / "gone.pem"))
    with pytest.raises(ConfigError, match=r"gone\.pem: expected a readable file"):
        verify_archive(signed)


@pytest.mark.parametrize(
    "door",
    [
        lambda archive: select_archives(archive.parent),
        lambda archive: Server(ServerConfig(store=archive.parent)),
        lambda archive: ArchiveAsker(archive, workers=1),
        lambda archive: ask_archive(archive, []),
    ],
    ids=["store", "server", "batch", "try"],
)
def test_every_door_refuses_what_is_not_signed(
    door: Callable[[Path], object], signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_TRUST", str(keys.with_suffix(".pub.pem")))
    signature_path(signed).unlink()
    with pytest.raises(ArchiveError, match="is not signed"):
        door(signed)


def test_a_container_ends_with_one_line(
    signed: Path,
    keys: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MEDSERVE_TRUST", str(keys.with_suffix(".pub.pem")))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    signature_path(signed).unlink()
    given_up = container.main(
        ["--store", str(signed.parent), "--proof-file", str(tmp_path / "proof")]
    )
    assert given_up == 2
    assert [each.getMessage().count("is not signed") for each in caplog.records] == [1]


def test_a_signature_of_another_key_is_refused(signed: Path, tmp_path: Path, trust: Trust) -> None:
    make_key_pair(tmp_path / "other.pem")
    sign(signed, tmp_path / "other.pem")
    with pytest.raises(ArchiveError, match=r"not signed by a key that .* lists"):
        verify_archive(signed, trust)
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.pub.pem"))))
    assert verify_archive(signed, Trust.read(both)).signed_by


def test_a_signature_of_another_archive_is_refused(
    signed: Path, keys: Path, trust: Trust, tmp_path: Path
) -> None:
    other = tmp_path / "other.mar"
    other.write_bytes(b"other")
    sign_file(other, "0" * 64, read_private_key(keys))
    signature_path(other).replace(signature_path(signed))
    with pytest.raises(ArchiveError, match="belongs to another archive"):
        verify_archive(signed, trust)


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_keys_of_every_curve_of_the_standard_sign(curve: str, signed: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = written(ec.generate_private_key(getattr(ec, curve)()), tmp_path)
    sign(signed, key)
    assert verify_archive(signed, Trust.read(key.with_suffix(".pub.pem"))).signed_by


def test_keys_of_another_kind_are_refused_by_the_name_of_their_file(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = written(ed25519.Ed25519PrivateKey.generate(), tmp_path)
    with pytest.raises(ConfigError, match=r"odd\.pem: expected a key on P-256"):
        read_private_key(key)
    with pytest.raises(ConfigError, match=r"odd\.pub\.pem: expected public keys .* on P-256"):
        Trust.read(key.with_suffix(".pub.pem"))


def test_a_private_key_is_not_taken_for_a_list_of_public_ones(keys: Path) -> None:
    with pytest.raises(ConfigError, match="it holds a private one"):
        Trust.read(keys)


@pytest.mark.parametrize("content", [b"", b"ssh-ed25519 AAAA", b"\0" * 100])
def test_a_file_without_keys_trusts_nobody(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=r"none\.pem: expected public keys"):
        Trust.read(tmp_path / "none.pem")


def test_the_private_key_is_for_its_owner_alone_and_never_overwritten(keys: Path) -> None:
    assert keys.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="is there already"):
        make_key_pair(keys)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 60_000, b"{}", b"\xff", b"1" * 70000])
def test_what_is_no_signature_is_refused(content: bytes, signed: Path, trust: Trust) -> None:
    signature_path(signed).write_bytes(content)
    with pytest.raises((ArchiveError, ConfigError), match=r"tiny-1\.0\.mar\.sig: expected"):
        verify_archive(signed, trust)


def test_a_signature_of_the_tool_model_signing_is_read(tmp_path: Path) -> None:
    (tmp_path / "keys.pem").write_bytes(FOREIGN_KEY)
    (tmp_path / "one.mar.sig").write_text(FOREIGN_SIGNATURE, encoding="utf-8")
    trust = Trust.read(tmp_path / "keys.pem")
    of_hello = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert trust.check(tmp_path / "one.mar", of_hello).startswith("bcf5ba7e")
    with pytest.raises(ArchiveError, match="is not what was signed"):
        trust.check(tmp_path / "one.mar", "0" * 64)


def test_our_signatures_have_the_form_of_the_tool(signed: Path) -> None:
    ours = json.loads(signature_path(signed).read_text(encoding="utf-8"))
    assert shape(ours) == shape(json.loads(FOREIGN_SIGNATURE))


@pytest.mark.parametrize("hand_over", [place_archive, unpack_archive])
def test_an_archive_that_was_exchanged_after_its_verification_is_not_handed_over(
    hand_over: Callable[[ArchiveInfo, Path], None], signed: Path, trust: Trust, tmp_path: Path
) -> None:
    info = verify_archive(signed, trust)
    hand_over(info, tmp_path / "before")
    with zipfile.ZipFile(signed, "a") as opened:
        opened.writestr("torch.py", b"# shadows\n")
    with pytest.raises(ArchiveError, match="was changed after it was verified"):
        hand_over(info, tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_a_signed_archive_is_handed_over_as_a_copy(
    signed: Path, trust: Trust, tmp_path: Path
) -> None:
    info = verify_archive(signed, trust)
    place_archive(info, tmp_path / "copy.mar")
    assert not (tmp_path / "copy.mar").is_symlink()
    assert verify_archive(tmp_path / "copy.mar").sha256 == info.sha256
    place_archive(replace(info, signed_by=""), tmp_path / "link.mar")
    assert (tmp_path / "link.mar").is_symlink()


@pytest.mark.parametrize("hand_over", [place_archive, unpack_archive])
def test_a_full_disk_ends_in_one_sentence_and_leaves_no_half_of_an_archive(
    hand_over: Callable[[ArchiveInfo, Path], None], signed: Path, trust: Trust, tmp_path: Path
) -> None:
    info = verify_archive(signed, trust)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # bytes, of any file
    try:
        with pytest.raises(ArchiveError, match="cannot be copied or unpacked: File too large"):
            hand_over(info, tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "target").is_file()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_file_that_changes_while_it_is_read_gives_its_first_bytes_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr("medserve.archive.steady_file._KEPT_BLOCKS", 1)
    content = bytes(range(256)) * 1000  # four blocks, the last one short
    path = tmp_path / "changing"
    path.write_bytes(content)
    reader, _ = open_steadily(path)
    with reader:
        change = data.draw(st.sampled_from([changed_bytes, cut_or_extended]))
        path.write_bytes(change(data, content))
        start = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, len(content)))
        reader.seek(start)
        try:
            found = reader.read(length)
        except ArchiveError:
            return
        assert found == content[start : start + length]


def written(key: object, folder: Path) -> Path:
    """Write any pair of keys as `medserve keygen` would."""
    from cryptography.hazmat.primitives import serialization as forms

    path = folder / "odd.pem"
    path.write_bytes(
        key.private_bytes(  # type: ignore[attr-defined]
            forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
        )
    )
    path.with_suffix(".pub.pem").write_bytes(
        key.public_key().public_bytes(  # type: ignore[attr-defined]
            forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


def shape(value: object) -> object:
    """Return keys and kinds, without the values."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value).__name__
