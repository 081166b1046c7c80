"""The client: typed answers over gRPC, without torch.

    from medserve.client import Client, SampleOptions

    with Client("127.0.0.1:7070") as client:
        for result in client.classify("mednist", sorted(Path("images").iterdir())):
            print(result.error or result.unwrap().label)
        answer = client.segment("segmentation_3d", Path("brain.nii.gz"))
        print(answer.volumes_ml)
        Path("brain_mask.nii.gz").write_bytes(answer.mask_nifti)
        print(client.segment_frame("trus_prostate", Path("cine.dcm")).stack.volume_ml)
        for part in client.sample("diffusion_sampler", SampleOptions(count=8, seed=1)):
            print(part)

Every failure is an error of `medserve.errors`.
"""

from medserve.client._async import AsyncClient
from medserve.client._connection import Limits, TlsConfig
from medserve.client._frames import FrameAnswer, FrameOptions, FrameResult, View
from medserve.client._results import (
    ItemResult,
    ModelStatus,
    SegmentationOptions,
    SegmentationResult,
    VolumeResult,
)
from medserve.client._sampling import SampledImage, SampleOptions, SampleProgress, SampleSet
from medserve.client._sync import Client
from medserve.engine.torchserve.keys import Tokens
from medserve.results.frame_segmentation import FrameSegmentation
from medserve.results.sample import Sample
from medserve.results.segmentation import Segmentation
from medserve.tasks.classification import Classification, Explanation
from medserve.tasks.result import Provenance

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "Explanation",
    "FrameAnswer",
    "FrameOptions",
    "FrameResult",
    "FrameSegmentation",
    "ItemResult",
    "Limits",
    "ModelStatus",
    "Provenance",
    "Sample",
    "SampleOptions",
    "SampleProgress",
    "SampleSet",
    "SampledImage",
    "Segmentation",
    "SegmentationOptions",
    "SegmentationResult",
    "TlsConfig",
    "Tokens",
    "View",
    "VolumeResult",
]
