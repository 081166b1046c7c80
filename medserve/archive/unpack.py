"""Hand a verified archive to what runs it: exactly the bytes that were verified, or none.

Whoever may write to the model store could exchange an archive between its verification and its
use. Each function here compares what it hands over with `ArchiveInfo.sha256`.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from medserve.archive.read import ArchiveInfo
from medserve.archive.steady_file import open_steadily
from medserve.errors import ArchiveError

__all__ = ["place_archive", "unpack_archive"]


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
    try:
        with _unchanged(archive) as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy, 2**20)
    except BaseException as error:
        target.unlink(missing_ok=True)  # never half an archive
        if isinstance(error, OSError):
            raise ArchiveError(
                f"{archive.path} cannot be copied to {target.parent}: {error.strerror}"
            ) from error
        raise


def unpack_archive(archive: ArchiveInfo, folder: Path, names: Collection[str] = ()) -> None:
    """Unpack a verified archive into a folder: all of it, or those of `names` that it has.

    Raises:
        ArchiveError: the archive has changed since it was verified.
    """
    with _unchanged(archive) as source, zipfile.ZipFile(source) as packed:
        packed.extractall(
            folder, [each for each in packed.namelist() if not names or each in names]
        )


@contextmanager
def _unchanged(archive: ArchiveInfo) -> Iterator[io.BufferedReader]:
    reader, file = open_steadily(archive.path)
    with reader:
        if file.sha256 != archive.sha256:
            raise ArchiveError(
                f"{archive.path} was changed after it was verified; start again with the new one"
            )
        yield reader
