"""How unlike the training data an image is, from features that the network has anyway."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medserve.errors import ConfigError

__all__ = ["BLANK", "Novelty", "describe", "fit_novelty"]

BLANK = 2.0 / 255.0  # standard deviation of intensities below which an image shows nothing

_STAGES = 2  # the last two; a third would catch little more and cost 80 KB
_SHRINK = 0.05  # of a class's covariance towards the common one
_RIDGE = 1e-4  # times the mean variance, so that dead channels can be inverted
_QUANTILE = 0.995  # of the validation images that stay below the limit


def describe(maps: list[Tensor]) -> Tensor:
    """Feature maps (N, C, H, W) of the stages -> one vector (N, D) an image.

    The log of each channel's mean over the plane: means are positive after ReLU and spread over
    decades, so their logs are nearer to the normal distribution that the distance assumes.
    """
    means = torch.cat([each.mean(dim=(2, 3)) for each in maps[-_STAGES:]], dim=1)
    return torch.log(means + 0.01)


class Novelty(nn.Module):
    """Mahalanobis distance to the class of an answer, over the limit that validation images keep.

    After Lee et al., NeurIPS 2018 (arXiv:1807.03888), but with a covariance for each class: the
    common one let nine of ten brain MR slices pass. And to the class that the network names, not to
    the nearest: an image that lies among one class and is called another is like none of the other.
    An image of less contrast than any that was trained on shows nothing and is unlike whatever its
    distance.
    """

    whitening: Tensor
    shift: Tensor
    centre: Tensor
    limit: Tensor
    least_contrast: Tensor

    def __init__(self, means: Tensor, whitening: Tensor, least_contrast: float) -> None:
        """Take class means (K, D) and whitening (K, D, D): identity covariance per class."""
        super().__init__()
        self.classes, self.size = means.shape
        centre = means.mean(dim=0)  # taken off first, to keep float32 sums small
        shift = torch.einsum("kd,kde->ke", means - centre, whitening)
        columns = whitening.permute(1, 0, 2).reshape(self.size, -1)  # (D, K * D)
        self.register_buffer("centre", centre.float())
        self.register_buffer("whitening", columns.float().contiguous())
        self.register_buffer("shift", shift.float())
        self.register_buffer("limit", torch.tensor(1.0))
        self.register_buffer("least_contrast", torch.tensor(least_contrast))

    def distance(self, described: Tensor, logits: Tensor) -> Tensor:
        """Described images (N, D), logits (N, K) -> distance to the likeliest class (N,)."""
        white = (described - self.centre) @ self.whitening  # (N, K * D)
        apart = white.view(-1, self.classes, self.size) - self.shift
        named = logits.argmax(dim=1, keepdim=True)
        return apart.square().sum(dim=2).gather(1, named)[:, 0].sqrt()

    def forward(self, image: Tensor, maps: list[Tensor], logits: Tensor) -> Tensor:
        """Image (N, C, H, W), its maps and logits (N, K) -> novelty (N,); above 1 it is unlike."""
        return self.judge(image, describe(maps), logits)

    def judge(self, image: Tensor, described: Tensor, logits: Tensor) -> Tensor:
        """Image (N, C, H, W), described in another way (N, D), and logits -> novelty (N,)."""
        contrast = image.flatten(1).std(dim=1)
        flatness = self.least_contrast / (contrast + 1e-4)
        return torch.maximum(self.distance(described, logits) / self.limit, flatness)


def fit_novelty(
    described: Tensor,
    label_ids: Tensor,
    held_out: tuple[Tensor, Tensor],
    least_contrast: float,
) -> Novelty:
    """Class means and covariances from training images, the limit from held-out ones.

    Args:
        described: (N, D) of training images that show something.
        label_ids: int64 (N,).
        held_out: (M, D) of validation images that show something, and their logits (M, K).
        least_contrast: Smallest standard deviation of intensities among the training images.

    Raises:
        ConfigError: a class has too few images for a covariance.
    """
    vectors = described.double()
    classes, size = int(label_ids.max()) + 1, vectors.shape[1]
    members = [vectors[label_ids == k] for k in range(classes)]
    if min(len(each) for each in members) < 2:
        raise ConfigError("expected two images or more of each class to fit the novelty, got fewer")
    means = torch.stack([each.mean(dim=0) for each in members])
    common = _covariance(vectors - means[label_ids])
    ridge = _RIDGE * common.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    whitening = []
    for k, each in enumerate(members):
        own = _covariance(each - means[k])
        variances, axes = torch.linalg.eigh((1.0 - _SHRINK) * own + _SHRINK * common + ridge)
        whitening.append(axes / variances.sqrt())
    novelty = Novelty(means, torch.stack(whitening), least_contrast)
    vectors, logits = held_out
    novelty.limit = novelty.distance(vectors.float(), logits).quantile(_QUANTILE)
    return novelty


def _covariance(deviations: Tensor) -> Tensor:
    return deviations.T @ deviations / len(deviations)
