"""The SOP classes and transfer syntaxes that a node takes."""

from __future__ import annotations

from functools import cache

from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

__all__ = [
    "NEVER_SHOWING_TEXT",
    "RESULT_CLASSES",
    "STORED_CLASSES",
    "is_result_class",
    "readable_syntaxes",
]

# Images that a rule can be for. Others are refused when an association is negotiated.
_IMAGES = (
    uid.ComputedRadiographyImageStorage,
    uid.CTImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForProcessing,
    uid.EnhancedCTImageStorage,
    uid.EnhancedMRImageStorage,
    uid.EnhancedPETImageStorage,
    uid.EnhancedUSVolumeStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
    uid.MRImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    uid.NuclearMedicineImageStorage,
    uid.PositronEmissionTomographyImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.UltrasoundImageStorage,
    uid.UltrasoundMultiFrameImageStorage,
    uid.VLMicroscopicImageStorage,
    uid.VLPhotographicImageStorage,
    uid.XRayAngiographicImageStorage,
)
# Of these, images as scanners make them; others may be pictures of a screen.
NEVER_SHOWING_TEXT = (
    uid.CTImageStorage,
    uid.EnhancedCTImageStorage,
    uid.EnhancedMRImageStorage,
    uid.EnhancedPETImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
    uid.MRImageStorage,
    uid.PositronEmissionTomographyImageStorage,
)
# What an archive that forwards everything sends back: taken, and not worked on. A refusal would
# be sent again for ever.
RESULT_CLASSES = (
    uid.SegmentationStorage,
    uid.UID("1.2.840.10008.5.1.4.1.1.66.7"),  # Label Map Segmentation
    uid.BasicTextSRStorage,
    uid.EnhancedSRStorage,
    uid.ComprehensiveSRStorage,
    uid.Comprehensive3DSRStorage,
    uid.KeyObjectSelectionDocumentStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.ColorSoftcopyPresentationStateStorage,
    uid.EncapsulatedPDFStorage,
)
STORED_CLASSES = (*_IMAGES, *RESULT_CLASSES)
_UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)


def is_result_class(sop_class: str) -> bool:
    """Tell whether an object of the class is derived from images and no image itself."""
    return sop_class in RESULT_CLASSES


@cache
def readable_syntaxes() -> tuple[str, ...]:
    """Return the transfer syntaxes whose pixels a decoder of this environment reads.

    Deflated headers and big endian are left out: model servers refuse them.
    """
    found = []
    for syntax in uid.AllTransferSyntaxes:
        if not syntax.is_encapsulated or syntax == uid.JPEGExtended12Bit:
            continue  # of the latter only 8 bits are read, and no header says so beforehand
        try:
            if get_decoder(syntax).is_available:
                found.append(str(syntax))
        except NotImplementedError:
            continue
    return (*map(str, _UNCOMPRESSED), *found)
