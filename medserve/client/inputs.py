"""The files of a request: read or encoded when their turn comes, and packed into calls."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from medserve.client.connection import Limits
from medserve.errors import (
    InvalidImageError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
)
from medserve.tasks.volumes import case_and_number, channel_keys

__all__ = [
    "Case",
    "Files",
    "Source",
    "files_below",
    "pack",
    "read",
    "read_case",
    "read_each",
    "read_file",
    "zip_contents",
    "zip_files",
]

_ENVELOPE_BYTES = 16 * 2**10  # of the protobuf around a file: names, keys, lengths, parameters
_FAST = 1  # zlib's level: 12-bit images in 16-bit words halve at once, more costs seconds


@runtime_checkable
class Picture(Protocol):
    """A picture of Pillow, which is not imported for those who have none."""

    @property
    def mode(self) -> str:
        """How a pixel is stored."""

    def save(self, fp: Any, format: str | None = None, /) -> None:
        """Write it to a file."""


# What a caller may send: bytes as they are; a path as text or as a Path; a file that is open in
# binary mode; pixels as an array or as a picture of Pillow.
Source = bytes | str | os.PathLike[str] | BinaryIO | npt.NDArray[Any] | Picture
# One case: a single input; the inputs of its channels by name; or their files, whose names end in
# _0000, _0001 and so on, in a list or alone in a folder.
Case = Source | Mapping[str, Source] | Sequence[str | os.PathLike[str]]
Contents = bytes | MedserveError  # of a file, or the reason why it cannot be sent
Files = Mapping[str, bytes]  # of a case, by their keys in a call
_Given = TypeVar("_Given")
_Read = TypeVar("_Read")


def pack(images: Iterable[Source], limits: Limits, items_per_call: int) -> Iterator[list[Contents]]:
    """Group images in order; a file is read only when its group is being filled."""
    group: list[Contents] = []
    size = 0
    for image in read_each(images, limits, read):
        extra = len(image) if isinstance(image, bytes) else 0
        if group and (len(group) == items_per_call or size + extra > limits.bytes_per_call):
            yield group
            group, size = [], 0
        group.append(image)
        size += extra
    if group:
        yield group


def read_each(
    files: Iterable[_Given],
    limits: Limits,
    read_one: Callable[[_Given, Limits], _Read],
) -> Iterator[_Read | MedserveError]:
    """Read files one by one; a file that cannot be sent is its error."""
    if isinstance(files, str | bytes | os.PathLike):
        raise InvalidRequestError("expected several files, got one; put it into a list")
    for file in files:
        try:
            yield read_one(file, limits)
        except MedserveError as error:
            yield error


def read(file: Source, limits: Limits) -> bytes:
    """Return the bytes to send; pixels become a PNG.

    Raises:
        InvalidRequestError: nothing can be read there, or it is nothing that can be sent.
        PayloadTooLargeError: over the limit of one message.
    """
    if isinstance(file, bytes | bytearray | memoryview):
        content = bytes(file)
    elif isinstance(file, str | os.PathLike):
        content = _read_path(Path(file), limits)
    elif isinstance(file, np.ndarray):
        content = _png(_picture(file))
    elif isinstance(file, Picture):
        content = _png(file)
    elif hasattr(file, "read"):
        content = _read_open(file, limits)
    else:
        raise InvalidRequestError(
            "expected bytes, a path, a file that is open in binary mode, an array or a picture of "
            f"Pillow, got {type(file).__name__}"
        )
    _check_size(len(content), limits)
    return content


def read_file(file: Source, limits: Limits) -> Files:
    """Return the one file of a call; see `read`."""
    return {"data": read(file, limits)}


def read_case(case: Case, limits: Limits, *, has_spacing: bool = True) -> Files:
    """Return the files of a case by their keys in a call; each is read as `_read_volume` does.

    Raises:
        InvalidImageError: files in a list that are not the channels of one case.
        InvalidRequestError: nothing can be read there, or the size of an array's voxels is
            unknown.
        PayloadTooLargeError: all together are over the limit of one message.
    """
    if isinstance(case, Mapping):
        sources: dict[str, Source] = {f"data.{name}": each for name, each in case.items()}
    elif channels := _channel_files(case):
        keys = channel_keys([path.name for path in channels])
        sources = dict(zip(keys, channels, strict=True))
    else:
        sources = {"data": case}  # type: ignore[dict-item] # a list is given or refused above
    found: dict[str, bytes] = {}
    for key, source in sources.items():
        found[key] = _read_volume(source, limits, has_spacing=has_spacing)
        _check_size(sum(map(len, found.values())), limits)
    return found


def _channel_files(case: Source | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the files of channels that a list or a folder names; none of any other input."""
    if isinstance(case, list | tuple):
        if not case or not all(isinstance(each, str | os.PathLike) for each in case):
            raise InvalidImageError(
                "expected the files of one case in a list, named …_0000, …_0001; give other inputs "
                "as a mapping from the names of the model's channels"
            )
        return [Path(each) for each in case]
    if isinstance(case, str | os.PathLike) and os.path.isdir(case):
        found = sorted(path for path in Path(case).iterdir() if not path.name.startswith("."))
        if len(found) > 1 and all(_is_channel(path) for path in found):
            return found
    return []


def _is_channel(path: Path) -> bool:
    """Tell channels from the slices of a series, which may be numbered in the same way."""
    return case_and_number(path.name) is not None and (bool(path.suffix) or path.is_dir())


def _read_volume(case: Source, limits: Limits, *, has_spacing: bool) -> bytes:
    """Return the bytes to send: the files of a folder as one zip, an array of voxels as NPY.

    Names stay here: in the zip files are numbered.

    Raises:
        InvalidRequestError: nothing can be read there, or the size of an array's voxels is
            unknown.
        PayloadTooLargeError: over the limit of one message.
    """
    if isinstance(case, str | os.PathLike) and os.path.isdir(case):
        return zip_files(files_below(Path(case)), limits)
    if not isinstance(case, np.ndarray):
        return read(case, limits)
    if not has_spacing:
        raise InvalidRequestError(
            "expected the size of a voxel with an array, which states none; give "
            "VolumeOptions(spacing_mm=(x, y, z))"
        )
    if case.dtype.kind not in "biuf":
        raise InvalidRequestError(f"expected an array of numbers, got one of {case.dtype}")
    stream = io.BytesIO()
    np.save(stream, case, allow_pickle=False)
    return read(stream.getvalue(), limits)


def _read_path(path: Path, limits: Limits) -> bytes:
    try:
        found = path.stat()
        _check_size(found.st_size, limits)
        if stat.S_ISREG(found.st_mode):
            return path.read_bytes()
        with path.open("rb") as file:
            return file.read(limits.message_bytes + 1)  # a pipe or a device may have no end
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or "no path"
        raise InvalidRequestError(f"expected a readable file, got {path} ({reason})") from error


def _read_open(file: BinaryIO, limits: Limits) -> bytes:
    content: object = file.read(limits.message_bytes + 1)
    if not isinstance(content, bytes):
        raise InvalidRequestError('expected a file that is open in binary mode; open it with "rb"')
    return content


def _picture(pixels: npt.NDArray[Any]) -> Picture:
    """Return pixels as a picture; their type states their range."""
    colour = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    if not (colour or grey) or not pixels.size:
        raise InvalidRequestError(
            "expected pixels as uint8 (H, W) or (H, W, 3), which are shown as they are, or as "
            f"uint16 (H, W), which are measurements; got {pixels.dtype} {pixels.shape}"
        )
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(picture: Picture) -> bytes:
    """Encode a picture without loss."""
    stream = io.BytesIO()
    try:
        picture.save(stream, "PNG")
    except OSError as error:  # Pillow has modes that a PNG has not
        raise InvalidRequestError(
            f"expected a picture that a PNG can hold, got the mode {picture.mode}; convert it to L "
            "or RGB"
        ) from error
    return stream.getvalue()


def zip_files(paths: Iterable[Path], limits: Limits) -> bytes:
    """Return the files of one series as a zip; equal files give equal bytes."""
    return zip_contents((_read_path(path, limits) for path in paths), limits)


def zip_contents(files: Iterable[bytes], limits: Limits) -> bytes:
    """Return files as a zip, in which they have numbers as names.

    Raises:
        InvalidRequestError: there are none.
        PayloadTooLargeError: packed they are over the limit of one message.
    """
    stream = io.BytesIO()
    count = 0
    with zipfile.ZipFile(stream, "w") as archive:
        for content in files:
            numbered = zipfile.ZipInfo(f"{count:05d}")  # with the date from which zips count
            archive.writestr(numbered, content, zipfile.ZIP_DEFLATED, compresslevel=_FAST)
            count += 1
            if stream.tell() > limits.message_bytes:
                raise PayloadTooLargeError(
                    f"expected a series of at most {limits.message_bytes} bytes when packed, got "
                    "more; send one series, or raise Limits.message_bytes here and the limit of "
                    "the gateway"
                )
    if count == 0:
        raise InvalidRequestError(
            "expected files of a DICOM series, got none; send the folder that holds them"
        )
    return read(stream.getvalue(), limits)


def files_below(folder: Path) -> Iterator[Path]:
    """Give every file below the folder, sorted; hidden ones and links to others are left out.

    Raises:
        InvalidRequestError: a link leads out of the folder, without which slices would be missing.
    """
    root = folder.resolve()
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(current) / name
            if name.startswith("."):
                continue
            if path.is_symlink():
                if not Path(os.path.realpath(path)).is_relative_to(root):
                    raise InvalidRequestError(
                        f"expected files, got {path}, a link out of the folder; send the files "
                        "themselves"
                    )
            elif path.is_file():
                yield path


def _check_size(size: int, limits: Limits) -> None:
    limit = max(limits.message_bytes - _ENVELOPE_BYTES, 0)
    if size > limit:
        raise PayloadTooLargeError(
            f"expected at most {limit} bytes, got {size}; send a smaller file or raise "
            "Limits.message_bytes here and the limit of the gateway"
        )
