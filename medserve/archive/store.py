"""Choose archives out of the model store: by name, every version, verified."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from medserve.archive.decisions import Decisions
from medserve.archive.read import ArchiveInfo, verify_archive
from medserve.errors import ArchiveError, ConfigError, MedserveError, UnknownModelError

__all__ = ["default_versions", "name_the_damaged", "newer", "select_archives", "stored_names"]

logger = logging.getLogger(__name__)

_VERSION = re.compile(r"-\d.*$")  # of a file name; model names hold no hyphen


def stored_names(store: Path) -> list[str]:
    """Return the names of the models in the store, by its files alone, sorted."""
    return sorted({_VERSION.sub("", file.stem) for file in store.glob("*.mar")})


def select_archives(
    store: Path,
    names: Sequence[str] = (),
    decided: Decisions | None = None,
    watched: bool = False,
    refused: Callable[[MedserveError], None] | None = None,
) -> list[ArchiveInfo]:
    """Every version of the models `names` (none given: of all), oldest first, each verified.

    Args:
        store: Folder of the archives.
        names: Of the models.
        decided: Versions that were removed by decision are left out.
        watched: Versions that have come since the last decision are left to who watches the store.
        refused: Hears of each archive that is damaged or altered, which is left out then.

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
        try:
            info = verify_archive(file)
        except ArchiveError as error:
            if refused is None:
                raise
            refused(error)
            continue
        if decided and not decided.of(info.name).serves(info.version, watched=watched):
            continue
        if other := found.get((info.name, info.version)):
            raise ConfigError(
                f"{other.path} and {file} both hold {info.name} {info.version}; remove one"
            )
        found[info.name, info.version] = info
    chosen = [info for info in found.values() if not names or info.name in names]
    for name in names:
        if not any(info.name == name for info in chosen):
            known = ", ".join(stored_names(store))
            raise UnknownModelError(f"expected models out of {known} in {store}, got {name!r}")
    return sorted(chosen, key=lambda info: (info.name, _order(info.version)))


def default_versions(
    archives: Sequence[ArchiveInfo], wanted: Mapping[str, str], decided: Decisions | None = None
) -> dict[str, str]:
    """The version that answers when a request names none: the highest, unless `wanted` says.

    What was decided while serving counts where that version is there and `wanted` says nothing.

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
    kept = {
        name: decided.of(name).default
        for name, listed in versions.items()
        if decided and decided.of(name).default in listed
    }
    return {name: listed[-1] for name, listed in versions.items()} | kept | dict(wanted)


def name_the_damaged(error: MedserveError) -> None:
    """Say in the log why an archive is left out."""
    logger.warning("an archive of the store is not served: %s", error)


def newer(version: str, than: str) -> bool:
    """Return whether a version comes after another one."""
    return _order(version) > _order(than)


def _order(version: str) -> list[tuple[int, int | str]]:
    """1.10 after 1.9, 1.0.1 after 1.0, and 1.0-rc1 before 1.0."""
    parts = version.replace("-", ".").split(".")
    end = (1, -1)  # ranks a version that ends here above a word and below a number
    return [*((1, int(part)) if part.isdecimal() else (0, part) for part in parts), end]
