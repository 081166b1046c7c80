"""Train a classifier on synthetic images alone and test it on real ones.

The score says how much of what distinguishes the classes has reached the synthetic images (Esteban
et al., arXiv:1706.02633, section 4.2). It is read beside that of the same classifier trained on as
many real images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import track
from sklearn.metrics import balanced_accuracy_score

from training.classification.data import LabelledImages
from training.diffusion.extractor import DomainExtractor

__all__ = ["RealScore", "train_and_test"]

_BATCH = 64
_PEAK_RATE = 2e-3


@dataclass(frozen=True)
class RealScore:
    """Scores of a classifier on real images.

    Attributes:
        accuracy: Share of right answers.
        balanced_accuracy: Mean over classes of the share of right answers.
    """

    accuracy: float
    balanced_accuracy: float


def train_and_test(
    images: LabelledImages, real: LabelledImages, epochs: int = 10, seed: int = 0
) -> RealScore:
    """Train a small residual network on `images`, test it on `real`."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    pixels, label_ids = torch.from_numpy(images.images), torch.from_numpy(images.label_ids)
    network = DomainExtractor(pixels.shape[1], len(images.labels), width=16)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_PEAK_RATE, weight_decay=0.02)
    parts = -(-len(pixels) // _BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, _PEAK_RATE, total_steps=epochs * parts)
    for _ in track(range(epochs), description="Training a classifier"):
        for chosen in torch.randperm(len(pixels), generator=draws).tensor_split(parts):
            image = pixels[chosen].float() / 255.0
            mirrored = torch.rand(len(image), generator=draws) < 0.5
            image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
            loss = F.cross_entropy(network.label(network(image)), label_ids[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            rate.step()
    answers = _answers(network.eval(), real.images)
    return RealScore(
        accuracy=float((answers == real.label_ids).mean()),
        balanced_accuracy=float(balanced_accuracy_score(real.label_ids, answers)),
    )


@torch.inference_mode()
def _answers(network: DomainExtractor, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    starts = range(0, len(images), 4 * _BATCH)
    parts = (torch.from_numpy(images[start : start + 4 * _BATCH]) for start in starts)
    logits = [network.label(network(part.float() / 255.0)) for part in parts]
    return np.asarray(torch.cat(logits).argmax(dim=1).numpy())
