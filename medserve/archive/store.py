"""Choose archives out of the model store: by name, every version, verified."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medserve.archive.read import ArchiveInfo, verify_archive
from medserve.errors import ArchiveError, ConfigError, UnknownModelError

__all__ = ["default_versions", "select_archives"]

_VERSION = re.compile(r"-\d.*$")  # of a file name; model names hold no hyphen


def select_archives(store: Path, names: Sequence[str] = ()) -> list[ArchiveInfo]:
    """Every version of the models `names` (none given: of all), oldest first, each verified.

    Raises:
        ArchiveError: the store is empty, or one archive is damaged or altered.
        UnknownModelError: the store has no archive of that name.
        ConfigError: two files hold the same version of one model.
    """
    files = sorted(store.glob("*.mar"))
    if not files:
        raise ArchiveError(
            f"expected model archives (*.mar) in {store}, there are none; build them with "
            f"`medserve package --all`"
        )
    found: dict[tuple[str, str], ArchiveInfo] = {}
    for file in files:
        if names and not any(file.name.startswith(f"{name}-") for name in names):
            continue  # unasked for: a damaged stranger does not keep the others from starting
        info = verify_archive(file)
        if other := found.get((info.name, info.version)):
            raise ConfigError(
                f"{other.path} and {file} both hold {info.name} {info.version}; remove one"
            )
        found[info.name, info.version] = info
    chosen = [info for info in found.values() if not names or info.name in names]
    for name in names:
        if not any(info.name == name for info in chosen):
            known = ", ".join(sorted({_VERSION.sub("", file.stem) for file in files}))
            raise UnknownModelError(f"expected models out of {known} in {store}, got {name!r}")
    return sorted(chosen, key=lambda info: (info.name, _order(info.version)))


def default_versions(archives: Sequence[ArchiveInfo], wanted: Mapping[str, str]) -> dict[str, str]:
    """The version that answers when a request names none: the highest, unless `wanted` says.

    Raises:
        ConfigError: a wanted version is not among the archives.
    """
    versions: dict[str, list[str]] = {}
    for info in archives:  # oldest first
        versions.setdefault(info.name, []).append(info.version)
    for name, version in wanted.items():
        if version not in versions.get(name, []):
            there = ", ".join(versions.get(name, [])) or "none"
            raise ConfigError(
                f"default version: expected one of {there} for {name}, got {version!r}"
            )
    return {name: wanted.get(name, listed[-1]) for name, listed in versions.items()}


def _order(version: str) -> list[tuple[int, int | str]]:
    """1.10 after 1.9, 1.0.1 after 1.0, and 1.0-rc1 before 1.0."""
    parts = version.replace("-", ".").split(".")
    end = (1, -1)  # ranks a version that ends here above a word and below a number
    return [*((1, int(part)) if part.isdecimal() else (0, part) for part in parts), end]
