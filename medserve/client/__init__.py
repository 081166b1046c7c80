"""The client: typed answers over gRPC, without torch.

    from medserve.client import Client, GenerationOptions

    with Client("127.0.0.1:8001") as client:
        for result in client.classify("mednist", sorted(Path("images").iterdir())):
            print(result.error or result.unwrap().label)
        answer = client.segment("segmentation_3d", Path("brain.nii.gz"))
        print(answer.volumes_ml)
        Path("brain_mask.nii.gz").write_bytes(answer.mask_nifti)
        print(client.segment_frame("trus_prostate", Path("cine.dcm")).stack.volume_ml)
        for part in client.sample("diffusion_sampler", GenerationOptions(count=8, seed=1)):
            print(part)

`AsyncClient` has the same methods for asyncio. `Segmentation`, `FrameSegmentation` and `Sample`
unpack the pixels of a result into arrays. Every failure is an error of `medserve.errors`.
"""

from medserve.client.aio import AsyncClient
from medserve.client.connection import Limits, TlsConfig
from medserve.client.inputs import Case, Source
from medserve.client.results import FileResult, ModelStatus, SegmentedFile
from medserve.client.sync import Client
from medserve.results.frame_segmentation import FrameSegmentation
from medserve.results.sample import Sample
from medserve.results.segmentation import Segmentation
from medserve.spec.generation import SamplerKind
from medserve.tasks.classification import Classification, ClassificationOptions, Explanation
from medserve.tasks.frames import FrameFormat, FrameOptions, FrameResult, View
from medserve.tasks.generation import (
    GenerationOptions,
    GenerationResult,
    SampleFormat,
    SampleImage,
    SampleProgress,
)
from medserve.tasks.regression import Estimate, Regression
from medserve.tasks.result import Provenance
from medserve.tasks.volumes import VolumeFormat, VolumeOptions, VolumeResult

__all__ = [
    "AsyncClient",
    "Case",
    "Classification",
    "ClassificationOptions",
    "Client",
    "Estimate",
    "Explanation",
    "FileResult",
    "FrameFormat",
    "FrameOptions",
    "FrameResult",
    "FrameSegmentation",
    "GenerationOptions",
    "GenerationResult",
    "Limits",
    "ModelStatus",
    "Provenance",
    "Regression",
    "Sample",
    "SampleFormat",
    "SampleImage",
    "SampleProgress",
    "SamplerKind",
    "Segmentation",
    "SegmentedFile",
    "Source",
    "TlsConfig",
    "View",
    "VolumeFormat",
    "VolumeOptions",
    "VolumeResult",
]
