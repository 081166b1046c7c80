"""Images, results and the codecs between them and bytes: numpy only, no torch."""

from medserve.imaging.image import Image
from medserve.imaging.result import Classification, Provenance

__all__ = ["Classification", "Image", "Provenance"]
