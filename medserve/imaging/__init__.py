"""Images, volumes and frames, and the codecs between them and bytes: numpy only, no torch."""

from medserve.imaging.image import Image

__all__ = ["Image"]
