"""Checks that every codec makes on the stated size, before it decodes a pixel."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from medserve.errors import InvalidImageError, PayloadTooLargeError
from medserve.spec import InputSpec

__all__ = ["Payload", "check_size", "quietly", "silence_libraries"]

_LIBRARIES = ("PIL", "pydicom", "highdicom", "nibabel", "tifffile", "pylibjpeg")

Payload = bytes | bytearray | memoryview  # TorchServe hands over a bytearray


def check_size(height: int, width: int, limits: InputSpec) -> None:
    """Refuse planes too small to recognise anything in, and those too large to hold.

    Raises:
        InvalidImageError: a side is shorter than `limits.min_side`.
        PayloadTooLargeError: more than `limits.max_pixels` pixels.
    """
    if min(height, width) < limits.min_side:
        raise InvalidImageError(
            f"expected at least {limits.min_side} x {limits.min_side} pixels, "
            f"got {width} x {height}; send the image at its original size"
        )
    if height * width > limits.max_pixels:
        raise PayloadTooLargeError(
            f"expected at most {limits.max_pixels} pixels, got {width} x {height} = "
            f"{width * height}; send a smaller copy"
        )


def silence_libraries() -> None:
    """Let nothing out that a library logs of a file: its lines quote headers and names.

    Levels would not do, for pydicom sets its own when it is imported. A disabled logger still
    passes on what its children log, and Pillow has one a module: that ends at the null handler.
    """
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.disabled = True
        library.propagate = False
        library.handlers = [logging.NullHandler()]


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back the warnings of Pillow and pydicom, which may quote what a file says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
