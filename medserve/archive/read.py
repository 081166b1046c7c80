"""Read a model archive (`.mar`) that anybody may have handed over, and say whether it is intact.

An archive is a zip whose members are stored, not compressed. `medserve-manifest.json` in it names
the SHA-256 of every other member; TorchServe's own `MAR-INF/MANIFEST.json` is checked against it
field by field. Nothing is unpacked and no code of the archive runs here.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import yaml

from medserve.archive.reference import REFERENCE, Reference
from medserve.archive.steady_file import SteadyFile, open_steadily
from medserve.archive.trust import Trust
from medserve.errors import ArchiveError, ConfigError
from medserve.spec import ModelSpec

__all__ = [
    "CARD",
    "MANIFEST",
    "NETWORK",
    "TORCHSERVE_MANIFEST",
    "ArchiveInfo",
    "Member",
    "golden_input",
    "inspect_archive",
    "intact_archive",
    "verify_archive",
]

MANIFEST = "medserve-manifest.json"
TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
CARD = "MODEL_CARD.md"
NETWORK = "model.onnx"
_CONFIG = "model-config.yaml"
_FORMAT = 1
_MAX_MEMBERS = 10_000
_MAX_READ_BYTES = 64 * 2**20  # manifest, card, golden input: what is read as a whole
_CHUNK_BYTES = 2**20
_MAX_YAML_BYTES = 2**16
_MAX_YAML_BRACKETS = 200  # PyYAML's time grows with the square of their nesting
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]*")
_FIELDS: dict[type, tuple[str, ...]] = {
    str: ("name", "version", "medserve_version", "git_commit"),
    dict: ("versions", "metrics", "members"),
    list: ("labels",),
}


@dataclass(frozen=True)
class Member:
    """One file in the archive; `intact` compares it with the manifest."""

    path: str
    size_bytes: int
    sha256: str
    intact: bool


@dataclass(frozen=True)
class ArchiveInfo:
    """What an archive says about itself, and everything that is wrong with it."""

    path: Path
    size_bytes: int
    sha256: str  # of the whole file
    digest: str  # "sha256:…" of the manifest: the `archive_digest` in every answer
    spec: ModelSpec
    medserve_version: str
    git_commit: str
    versions: Mapping[str, str]
    metrics: Mapping[str, Any]
    card: str
    members: tuple[Member, ...]
    problems: tuple[str, ...]
    reference: Reference | None = None  # answers on held-out data, where the archive has them
    signed_by: str = ""  # fingerprint of the trusted key; "" where no signature was asked for

    @property
    def name(self) -> str:
        """The name under which the model is served."""
        return self.spec.name

    @property
    def version(self) -> str:
        """Version of the archive, not of medserve."""
        return self.spec.version

    @property
    def intact(self) -> bool:
        """Every member is there, unchanged, and none was added."""
        return not self.problems


def verify_archive(path: Path, trust: Trust | None = None) -> ArchiveInfo:
    """Inspect an archive that is to be used, and refuse what may not be.

    Everything that loads an archive begins here. What is used afterwards has to be what was
    verified: `medserve.archive.unpack` hands it over.

    Args:
        path: The archive; its signature lies beside it.
        trust: The keys of which one has to have signed it, checked before the archive is looked
            into; by default those of MEDSERVE_TRUST, and without that no signature is asked for.

    Raises:
        ArchiveError: a single byte or name differs from its manifest, or it is not signed so.
        ConfigError: the file of trusted keys cannot be used.
    """
    trust = trust or Trust.from_environment()
    reader, file = open_steadily(path)
    with reader:
        signed_by = trust.check(path, file.sha256) if trust else ""
        with _zip(reader, path) as archive:
            info = _inspect(archive, file, path)
    return replace(_intact(info), signed_by=signed_by)


def intact_archive(path: Path) -> ArchiveInfo:
    """Inspect an archive that has just been built, or is about to be signed.

    Raises:
        ArchiveError: a single byte or name differs from its manifest.
    """
    return _intact(inspect_archive(path))


def inspect_archive(path: Path) -> ArchiveInfo:
    """Describe the archive and compare every member with the manifest.

    Raises:
        ArchiveError: the file is no archive of ours, or is built to harm its reader.
    """
    reader, file = open_steadily(path)
    with reader, _zip(reader, path) as archive:
        return _inspect(archive, file, path)


def _intact(info: ArchiveInfo) -> ArchiveInfo:
    if info.problems:
        more = f" (and {len(info.problems) - 1} more)" if len(info.problems) > 1 else ""
        raise ArchiveError(
            f"{info.path}: {info.problems[0]}{more}; build it again with "
            f"`medserve package {info.name}`"
        )
    return info


def _inspect(archive: zipfile.ZipFile, file: SteadyFile, path: Path) -> ArchiveInfo:
    entries = _entries(archive, file.size_bytes, path)
    raw = _read(archive, entries, MANIFEST, path)
    manifest = _manifest(raw, path)
    found = {name: _sha256(archive, entry) for name, entry in entries.items()}
    members = tuple(
        Member(name, entries[name].file_size, found[name], found[name] == digest)
        for name, digest in sorted(manifest["members"].items())
        if name in entries
    )
    problems = _compare(manifest["members"], found)
    spec = _spec(archive, entries, path)
    problems += _check_torchserve(archive, entries, spec, path)
    if (spec.name, spec.version) != (manifest["name"], manifest["version"]):
        problems.append(f"{_CONFIG} and {MANIFEST} name different models or versions")
    reference = _reference(archive, entries, path)
    if reference is not None and reference.network != found.get(NETWORK):
        problems.append(
            f"{REFERENCE} is of another network; make it anew with `medserve sketch`, or remove it"
        )
    return ArchiveInfo(
        path=path,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        digest=f"sha256:{hashlib.sha256(raw).hexdigest()}",
        spec=spec,
        medserve_version=manifest["medserve_version"],
        git_commit=manifest["git_commit"],
        versions=manifest["versions"],
        metrics=manifest["metrics"],
        card=_read(archive, entries, CARD, path).decode("utf-8", "replace"),
        members=members,
        problems=tuple(problems),
        reference=reference,
    )


def golden_input(path: Path) -> bytes:
    """The input that the archive proves itself with: the server's canary."""
    try:
        with path.open("rb") as file, _zip(file, path) as archive:
            entries = _entries(archive, path.stat().st_size, path)
            for name in entries:
                if name.startswith("golden_input."):
                    return _read(archive, entries, name, path)
    except OSError as error:
        raise ArchiveError(f"{path}: expected a readable archive: {error}") from error
    raise ArchiveError(f"{path}: expected a member golden_input.*, there is none")


def _zip(file: BinaryIO, path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ArchiveError(
            f"{path}: expected a model archive (.mar, a zip file), cannot read it as one: {error}"
        ) from error


def _entries(archive: zipfile.ZipFile, size_bytes: int, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Members by name; refuses everything that could harm who reads or unpacks it."""
    entries: dict[str, zipfile.ZipInfo] = {}
    listed = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(listed) > _MAX_MEMBERS:
        raise ArchiveError(f"{path}: expected at most {_MAX_MEMBERS} members, got {len(listed)}")
    for entry in listed:
        name = entry.filename
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            raise ArchiveError(f"{path}: member {name!r} would be unpacked outside its folder")
        if name in entries:
            raise ArchiveError(f"{path}: member {name!r} is there twice")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ArchiveError(f"{path}: member {name!r} is a link; only files are allowed")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ArchiveError(
                f"{path}: member {name!r} is compressed or encrypted; medserve's archives are "
                f"stored as they are"
            )
        entries[name] = entry
    # Stored members cannot overlap honestly: more content than file is a decompression bomb.
    if sum(entry.file_size for entry in listed) > size_bytes:
        raise ArchiveError(f"{path}: its members claim more bytes than the file has")
    return entries


def _read(
    archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str, path: Path
) -> bytes:
    if name not in entries:
        raise ArchiveError(
            f"{path}: expected the member {name}, there is none; it was not built by "
            f"`medserve package`, or was cut"
        )
    if entries[name].file_size > _MAX_READ_BYTES:
        raise ArchiveError(f"{path}: {name} is larger than {_MAX_READ_BYTES} bytes")
    try:
        return archive.read(entries[name])
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ArchiveError(f"{path}: {name} is damaged: {error}") from error


def _sha256(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    """Digest of a member, or "" where its bytes do not even match the zip's own checksum."""
    digest = hashlib.sha256()
    try:
        with archive.open(entry) as member:
            while chunk := member.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (zipfile.BadZipFile, OSError, EOFError):
        return ""
    return digest.hexdigest()


def _manifest(raw: bytes, path: Path) -> dict[str, Any]:
    """Parse the manifest and check the type of every field that is used."""
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: {MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ArchiveError(f"{path}: expected {MANIFEST} of format {_FORMAT}")
    for kind, keys in _FIELDS.items():
        for key in keys:
            if not isinstance(manifest.get(key), kind):
                raise ArchiveError(f"{path}: {MANIFEST}: expected {kind.__name__} under {key!r}")
    return manifest


def _compare(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Sentences about members that are altered, missing or foreign."""
    unlisted = {MANIFEST, TORCHSERVE_MANIFEST}
    problems = [
        f"{name} was altered after packaging (its SHA-256 differs from the manifest)"
        for name in sorted(expected)
        if name in found and found[name] != expected[name]
    ]
    problems += [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    problems += [
        f"{name} was added after packaging (the manifest does not list it)"
        for name in sorted(set(found) - set(expected) - unlisted)
    ]
    return problems


def _spec(
    archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], path: Path
) -> ModelSpec:
    raw = _read(archive, entries, _CONFIG, path)
    try:
        _refuse_bombs(raw)
        spec = ModelSpec.from_mapping(yaml.safe_load(raw), source=f"{path}: {_CONFIG}")
    except (yaml.YAMLError, ConfigError, RecursionError) as error:
        raise ArchiveError(f"{path}: {_CONFIG} cannot be used: {error}") from error
    # Both become part of file names and of TorchServe's list of models.
    if not (_NAME.fullmatch(spec.name) and _VERSION.fullmatch(spec.version)):
        raise ArchiveError(
            f"{path}: expected a name of letters, digits and _ and a version such as 1.0, got "
            f"{spec.name!r} and {spec.version!r}"
        )
    return spec


def _reference(
    archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], path: Path
) -> Reference | None:
    if REFERENCE not in entries:
        return None
    return Reference.decode(_read(archive, entries, REFERENCE, path), str(path))


def _refuse_bombs(raw: bytes) -> None:
    """YAML can ask for far more time and memory than it has bytes."""
    if len(raw) > _MAX_YAML_BYTES or raw.count(b"[") + raw.count(b"{") > _MAX_YAML_BRACKETS:
        raise ConfigError(
            f"expected at most {_MAX_YAML_BYTES} bytes and {_MAX_YAML_BRACKETS} brackets"
        )
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(raw)):
        raise ConfigError("aliases are not allowed")


def _check_torchserve(
    archive: zipfile.ZipFile,
    entries: Mapping[str, zipfile.ZipInfo],
    spec: ModelSpec,
    path: Path,
) -> list[str]:
    """TorchServe's manifest decides what code starts, so it must name the listed files."""
    expected = {
        "modelName": spec.name,
        "modelVersion": spec.version,
        "handler": f"{spec.name}.py",
        "serializedFile": NETWORK,
        "configFile": _CONFIG,
        "requirementsFile": "requirements.txt",
    }
    try:
        manifest = json.loads(_read(archive, entries, TORCHSERVE_MANIFEST, path))
    except (ValueError, RecursionError):
        return [f"{TORCHSERVE_MANIFEST} is not JSON"]
    if not isinstance(manifest, dict) or manifest.get("runtime") != "python":
        return [f"{TORCHSERVE_MANIFEST} was altered: expected the runtime python"]
    if (model := manifest.get("model")) != expected:
        return [f"{TORCHSERVE_MANIFEST} was altered: expected model {expected}, got {model}"]
    return []
