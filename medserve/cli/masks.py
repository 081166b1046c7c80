"""What a model segments, and how its masks are written."""

from __future__ import annotations

import enum

from medserve.client import Client
from medserve.errors import InvalidImageError, InvalidRequestError

__all__ = ["MaskFormat", "Segments", "segments_what"]


class MaskFormat(enum.StrEnum):
    """How masks are written."""

    NIFTI = "nifti"  # <stem>_mask.nii.gz and <stem>_overlay.png
    DICOM_SEG = "dicom-seg"  # <stem>_mask.dcm and <stem>_overlay.png
    PNG = "png"  # <stem>_overlay.png, of frames <stem>_mask.png, too
    JSON = "json"  # <stem>.json: measurements alone


class Segments(enum.Enum):
    """What a model takes."""

    NOTHING = enum.auto()  # it does something else
    VOLUMES = enum.auto()
    FRAMES = enum.auto()


def segments_what(client: Client, model: str, version: str | None) -> Segments:
    """Ask the model with requests that cost no work.

    A model of another task refuses a parameter; one that knows it misses the bytes.
    """
    if not _knows(client, model, {"output": "json"}, version):
        return Segments.NOTHING
    if _knows(client, model, {"output": "json", "view": "stored"}, version):
        return Segments.FRAMES
    return Segments.VOLUMES


def _knows(client: Client, model: str, params: dict[str, str], version: str | None) -> bool:
    try:
        client.predict(model, b"", params, version=version)
    except InvalidImageError:
        return True
    except InvalidRequestError:
        return False
    return False
