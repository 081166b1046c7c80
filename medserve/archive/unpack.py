"""Hand a verified archive to what runs it: exactly the bytes that were verified, or none.

Whoever may write to the model store could exchange an archive between its verification and its
use. Each function here compares what it hands over with `ArchiveInfo.sha256`.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from medserve.archive.read import ArchiveInfo
from medserve.archive.steady_file import open_steadily
from medserve.errors import ArchiveError

__all__ = ["place_archive", "unpack_archive"]

_CHUNK_BYTES = 2**20


def place_archive(archive: ArchiveInfo, target: Path) -> None:
    """Let a file of an engine's private folder stand for a verified archive.

    A signed archive is copied, because the engine reads it later, when it may have been exchanged;
    where no signatures are asked for, the file is a link.

    Raises:
        ArchiveError: the archive has changed since it was verified, or cannot be copied.
    """
    if not archive.signed_by:
        target.symlink_to(archive.path.resolve())
        return
    digest = hashlib.sha256()
    with _in_one_sentence(archive), archive.path.open("rb") as source, target.open("xb") as copy:
        try:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
            copy.flush()
            _require_unchanged(archive, digest.hexdigest())
        except BaseException:
            target.unlink()  # never half an archive, nor another one
            raise


def unpack_archive(archive: ArchiveInfo, folder: Path, names: Collection[str] = ()) -> None:
    """Unpack a verified archive into a folder: all of it, or those of `names` that it has.

    Raises:
        ArchiveError: the archive has changed since it was verified, or cannot be unpacked.
    """
    reader, file = open_steadily(archive.path)
    with _in_one_sentence(archive), reader:
        _require_unchanged(archive, file.sha256)
        with zipfile.ZipFile(reader) as packed:
            wanted = [each for each in packed.namelist() if not names or each in names]
            packed.extractall(folder, wanted)


def _require_unchanged(archive: ArchiveInfo, sha256: str) -> None:
    if sha256 != archive.sha256:
        raise ArchiveError(
            f"{archive.path} was changed after it was verified; start again with the new one"
        )


@contextmanager
def _in_one_sentence(archive: ArchiveInfo) -> Iterator[None]:
    """Let what the disk refuses end as an error of the archive."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(
            f"{archive.path} cannot be copied or unpacked: {error.strerror or error}"
        ) from error
