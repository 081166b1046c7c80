"""Signatures of archives: who signs, whom an operator trusts, and the check between the two.

The signature of `NAME.mar` is the file `NAME.mar.sig` beside it; the archive itself stays as it is.
It is a bundle of OpenSSF Model Signing 1.0 (https://github.com/ossf/model-signing-spec) by the
method `key`: an in-toto statement that names the SHA-256 of the file, in a DSSE envelope, signed
with ECDSA on P-256, P-384 or P-521. The tool `model_signing` reads it, and we read what it signs.
docs/decisions/0009-signatures-without-the-package.md says why the format is written here.

All of it works without a network. `cryptography` is imported only where there is something to sign
or to check.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medserve.errors import ArchiveError, ConfigError
from medserve.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

__all__ = ["Trust", "make_key_pair", "read_private_key", "sign_file", "signature_path"]

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
_MAX_SIGNATURE_BYTES = 2**16
_MAX_KEY_BYTES = 2**20
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # P-256, P-384, P-521


@dataclass(frozen=True)
class Trust:
    """The public keys by one of which an archive has to be signed.

    Attributes:
        source: The file that they came from, for messages.
        keys: Each in PEM, at least one.
    """

    source: str
    keys: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def from_environment(cls) -> Trust | None:
        """Return the keys of the file MEDSERVE_TRUST, or None where it is not set."""
        path = Settings.from_environment().trust
        return None if path is None else cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Trust:
        """Read a file of public keys in PEM, one after the other.

        Raises:
            ConfigError: it cannot be read, has no key, or has one that cannot be used.
        """
        content = _content(path, _MAX_KEY_BYTES)
        if b"PRIVATE KEY" in content:
            raise ConfigError(
                f"{path}: expected public keys, it holds a private one; keep that where archives "
                "are signed, and give the file that `medserve keygen` wrote beside it"
            )
        keys = tuple(_PUBLIC_KEY.findall(content))
        if not keys:
            raise ConfigError(
                f"{path}: expected public keys (PEM, BEGIN PUBLIC KEY), it has none; "
                "`medserve keygen` makes a pair"
            )
        for key in keys:
            _public_key(key, path)
        return cls(str(path), keys)

    def check(self, archive: Path, sha256: str) -> str:
        """Return the fingerprint of the trusted key that signed the content of an archive.

        Args:
            archive: Its file; the signature lies beside it.
            sha256: Of its whole content, in hexadecimal.

        Raises:
            ArchiveError: there is no signature, none of a trusted key, or one of other content.
        """
        signature = signature_path(archive)
        if not signature.is_file():
            raise ArchiveError(
                f"{archive} is not signed: expected its signature in {signature.name} beside it; "
                f"sign it with `medserve sign {archive.name} --key KEY.pem`"
            )
        envelope = _Envelope.read(signature)
        for key in self.keys:
            if envelope.is_signed_by(_public_key(key, Path(self.source))):
                break
        else:
            raise ArchiveError(
                f"{archive} is not signed by a key that {self.source} lists; add the signer's "
                "public key there, or sign it with a key that it lists"
            )
        if envelope.signed_sha256(signature) != sha256:
            raise ArchiveError(
                f"{archive} is not what was signed: its content was changed, or "
                f"{signature.name} belongs to another archive"
            )
        return _fingerprint(_public_key(key, Path(self.source)))


@dataclass(frozen=True)
class _Envelope:
    """A statement and its signature, before anybody has checked them."""

    payload: bytes
    signature: bytes

    @classmethod
    def read(cls, path: Path) -> _Envelope:
        """Read a bundle; ArchiveError if it is none of OpenSSF Model Signing."""
        try:
            bundle = json.loads(_content(path, _MAX_SIGNATURE_BYTES))
            envelope = bundle["dsseEnvelope"]
            [signature] = envelope["signatures"]
            kinds = bundle["mediaType"], envelope["payloadType"]
            found = cls(_decoded(envelope["payload"]), _decoded(signature["sig"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArchiveError(
                f"{path}: expected a signature as `medserve sign` writes it, cannot read it as one"
            ) from error
        if kinds != (_MEDIA_TYPE, _PAYLOAD_TYPE):
            raise ArchiveError(
                f"{path}: expected a signature of the kinds {_MEDIA_TYPE} and {_PAYLOAD_TYPE}, "
                f"got {kinds[0]!r} and {kinds[1]!r}"
            )
        return found

    def is_signed_by(self, key: EllipticCurvePublicKey) -> bool:
        """Say if the key made the signature of this very statement."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

        try:
            key.verify(self.signature, _to_be_signed(self.payload), ECDSA(_hash_of(key)))
        except InvalidSignature:
            return False
        return True

    def signed_sha256(self, path: Path) -> str:
        """Return the SHA-256 of the one file that the statement is about.

        Raises:
            ArchiveError: the statement is about something else than one file.
        """
        try:
            statement = json.loads(self.payload)
            predicate = statement["predicate"]
            [resource] = predicate["resources"]
            found = (
                *(statement["_type"], statement["predicateType"]),
                *(predicate["serialization"]["method"], resource["algorithm"]),
            )
            digest = resource["digest"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArchiveError(f"{path}: expected a statement about one file") from error
        if found != (_STATEMENT, _PREDICATE, "files", "sha256") or not isinstance(digest, str):
            raise ArchiveError(f"{path}: expected the SHA-256 of one file, got {found}")
        return digest


def signature_path(archive: Path) -> Path:
    """Return where the signature of an archive lies: beside it."""
    return archive.with_name(f"{archive.name}.sig")


def sign_file(archive: Path, sha256: str, key: EllipticCurvePrivateKey) -> Path:
    """Write the signature of a file whose content has this SHA-256, and return its path."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    public = key.public_key()
    payload = json.dumps(_statement(archive.name, sha256)).encode()
    signature = key.sign(_to_be_signed(payload), ECDSA(_hash_of(public)))
    bundle = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": _fingerprint(public)},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    path = signature_path(archive)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(bundle) + "\n", encoding="utf-8")
    new.replace(path)
    return path


def read_private_key(path: Path, password: str | None = None) -> EllipticCurvePrivateKey:
    """Read a private key in PEM.

    Raises:
        ConfigError: it is none, is of another kind, or the password is wrong.
        TypeError: it is encrypted, and no password was given.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    secret = None if password is None else password.encode()
    try:
        key = load_pem_private_key(_content(path, _MAX_KEY_BYTES), secret)
    except ValueError as error:
        raise ConfigError(
            f"{path}: expected a private key (PEM) and its password where it has one, cannot "
            "read it so; `medserve keygen` makes a pair"
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise ConfigError(f"{path}: expected a key on P-256, P-384 or P-521; make one: keygen")
    return key


def make_key_pair(private: Path) -> Path:
    """Write a new private key, readable by its owner alone, and return the file of the public one.

    Raises:
        ConfigError: one of the two files is there already.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = private.with_suffix(f".pub{private.suffix}")
    for path in (private, public):
        if path.exists():
            raise ConfigError(f"{path} is there already; it is not overwritten, name another file")
    key = ec.generate_private_key(ec.SECP256R1())
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    public.write_bytes(_pem(key.public_key()))
    return public


def _statement(name: str, sha256: str) -> dict[str, Any]:
    """Return the in-toto statement about one file.

    The specification asks for the file's name as the name of the resource; the tool, in all its
    releases so far, writes and wants ".", and is to accept our signatures.
    """
    root = hashlib.sha256(bytes.fromhex(sha256)).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
            "resources": [{"name": ".", "algorithm": "sha256", "digest": sha256}],
        },
    }


def _to_be_signed(payload: bytes) -> bytes:
    """Return the pre-authentication encoding of DSSE 1.0: type and payload with their lengths."""
    return b"DSSEv1 %d %s %d %s" % (
        *(len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode()),
        *(len(payload), payload),
    )


def _hash_of(key: EllipticCurvePublicKey) -> HashAlgorithm:
    """Return the hash that goes with the size of the key's curve."""
    from cryptography.hazmat.primitives import hashes

    by_bits: Mapping[int, type[HashAlgorithm]] = {
        256: hashes.SHA256,
        384: hashes.SHA384,
        521: hashes.SHA512,
    }
    return by_bits[key.curve.key_size]()


def _public_key(content: bytes, source: Path) -> EllipticCurvePublicKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = cast("EllipticCurvePublicKey", load_pem_public_key(content))
        fits = key.curve.name in _CURVES
    except (ValueError, AttributeError):
        fits = False
    if not fits:
        raise ConfigError(f"{source}: expected public keys (PEM) on P-256, P-384 or P-521")
    return key


def _pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _fingerprint(key: EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of the key in PEM, by which a bundle names its key."""
    return hashlib.sha256(_pem(key)).hexdigest()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("expected base64") from error


def _content(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable file: {error.strerror}") from error
    if len(content) > most_bytes:
        raise ConfigError(f"{path}: expected at most {most_bytes} bytes")
    return content


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ConfigError(
            "signatures of archives need the package cryptography, which is not installed; "
            "pip install 'medserve[serve]'"
        ) from None
