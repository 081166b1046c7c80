"""Features of images for distances between sets, learned on the images themselves.

Fréchet distances are customary in the features of an Inception network that has seen photographs.
Where no such weights are at hand, or medical images say little to it, this extractor takes its
place: a small residual network that has learned to tell, on the training images, the class and by
which of the eight turns and mirrorings an image was moved (after Gidaris et al., arXiv:1803.07728).
It never sees the images that distances are measured on.

It tells left from right even in a brain. A network that was trained on mirrored images as well
makes such images, and the distance then sees little else: 26 where two sets of real slices are 0.1
apart. For such a network, features are averaged over an image and its mirror image.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import track
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from medserve.errors import ConfigError
from models.blocks import ResidualBlock2d, conv_norm_2d
from training.classification.data import LabelledImages

__all__ = [
    "DomainExtractor",
    "InceptionExtractor",
    "RealScore",
    "features",
    "load_extractor",
    "load_inception",
    "train_and_test",
    "train_extractor",
]

_TURNS = 8  # 4 turns by 90 degrees, mirrored or not
_BATCH = 256
_PEAK_RATE = 2e-3
_INCEPTION_SIDE = 299  # pixels, as the network was trained (Szegedy et al., arXiv:1512.00567)
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class DomainExtractor(nn.Module):
    """Image (N, C, H, W) in [0, 1] -> features (N, size); H and W divisible by 8."""

    def __init__(self, channels: int, classes: int, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm_2d(channels, width, 3), nn.ReLU(),
            ResidualBlock2d(width, 2 * width, stride=2),
            ResidualBlock2d(2 * width, 4 * width, stride=2),
            ResidualBlock2d(4 * width, 4 * width, stride=2),
        )  # fmt: skip
        self.size = 4 * width
        self.turn = nn.Linear(self.size, _TURNS)
        self.label = nn.Linear(self.size, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Mean of the last plane."""
        return self.body(image).mean(dim=(2, 3))


def train_extractor(images: LabelledImages, epochs: int = 6, seed: int = 0) -> DomainExtractor:
    """Learn on these images; minutes on a CPU for some thousand of 64 x 64 pixels."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    pixels, label_ids = torch.from_numpy(images.images), torch.from_numpy(images.label_ids)
    network = DomainExtractor(pixels.shape[1], len(images.labels))
    parts = len(pixels) // 64 + 1

    def order() -> Sequence[Tensor]:
        return torch.randperm(len(pixels), generator=draws).chunk(parts)

    def loss(chosen: Tensor) -> Tensor:
        turn = torch.randint(_TURNS, (len(chosen),), generator=draws)
        found = network(_turned(pixels[chosen].float() / 255.0, turn))
        of_label = F.cross_entropy(network.label(found), label_ids[chosen])
        return F.cross_entropy(network.turn(found), turn) + of_label

    _learn(network, order, loss, (epochs, parts), "Training the extractor")
    return network.eval()


def _learn(
    network: nn.Module,
    order: Callable[[], Sequence[Tensor]],
    loss_of: Callable[[Tensor], Tensor],
    length: tuple[int, int],
    title: str,
) -> None:
    """Fit a network by AdamW on one cycle.

    Args:
        network: Is changed.
        order: Returns the indices of each batch of an epoch.
        loss_of: Returns the loss of a batch.
        length: Epochs, and batches of each.
        title: Of the bar of progress.
    """
    epochs, parts = length
    optimiser = torch.optim.AdamW(network.parameters(), lr=_PEAK_RATE, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, _PEAK_RATE, total_steps=epochs * parts)
    for _ in track(range(epochs), description=title):
        for chosen in order():
            loss = loss_of(chosen)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            rate.step()


def load_extractor(path: Path, channels: int, classes: int) -> DomainExtractor:
    """An extractor that was saved by `torch.save(network.state_dict())`."""
    network = DomainExtractor(channels, classes)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


@torch.inference_mode()
def features(
    network: nn.Module, images: npt.NDArray[np.uint8], mirrored: bool = False
) -> npt.NDArray[np.float64]:
    """Images uint8 (N, C, H, W) -> (N, D); `mirrored` averages with those of the mirror image."""
    starts = range(0, len(images), _BATCH)
    parts = (torch.from_numpy(images[start : start + _BATCH]).float() / 255.0 for start in starts)

    def see(part: Tensor) -> Tensor:
        found: Tensor = network(part)
        return (found + network(part.flip(3))) / 2 if mirrored else found

    return np.concatenate([see(part).double().numpy() for part in parts])


def _turned(image: Tensor, turn: Tensor) -> Tensor:
    moved = torch.empty_like(image)
    for each in range(_TURNS):
        chosen = turn == each
        part = image[chosen].rot90(each % 4, dims=(2, 3))
        moved[chosen] = part.flip(3) if each >= 4 else part
    return moved


class InceptionExtractor(nn.Module):
    """Image (N, C, H, W) in [0, 1] -> (N, 2048), the last plane's mean; C is 1 or 3.

    Distances in these features are what papers report. Theirs come from other ports of the network
    and other ways of resizing, each of which shifts the figure, so ours compare with each other
    alone.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.network.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Enlarge by bilinear interpolation, scale as in training, look."""
        side = (_INCEPTION_SIDE, _INCEPTION_SIDE)
        large = F.interpolate(image, side, mode="bilinear", antialias=True, align_corners=False)
        colour = large.expand(-1, 3, -1, -1)
        found: Tensor = self.network(
            (colour - self.get_buffer("mean")) / self.get_buffer("deviation")
        )
        return found


def load_inception(path: Path) -> InceptionExtractor:
    """Read torchvision's `inception_v3` weights (a state dict as torchvision publishes it).

    Raises:
        ConfigError: no such file, or weights of another network.
    """
    from torchvision.models import inception_v3  # heavy, and only for those who have the file

    network = inception_v3(weights=None, aux_logits=True, transform_input=False, init_weights=False)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--extractor: expected the weights of torchvision's inception_v3 in {path}, got "
            f"something else ({reason})"
        ) from None
    return InceptionExtractor(network).eval()


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
    """Train a small residual network on `images` alone, and test it on `real` ones.

    The score says how much of what distinguishes the classes has reached synthetic images (Esteban
    et al., arXiv:1706.02633, section 4.2). It is read beside that of as many real images.
    """
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    pixels, label_ids = torch.from_numpy(images.images), torch.from_numpy(images.label_ids)
    network = DomainExtractor(pixels.shape[1], len(images.labels), width=16)
    parts = -(-len(pixels) // 64)

    def order() -> Sequence[Tensor]:
        return torch.randperm(len(pixels), generator=draws).tensor_split(parts)

    def loss(chosen: Tensor) -> Tensor:
        image = pixels[chosen].float() / 255.0
        mirrored = torch.rand(len(image), generator=draws) < 0.5
        image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
        return F.cross_entropy(network.label(network(image)), label_ids[chosen])

    _learn(network, order, loss, (epochs, parts), "Training a classifier")
    answers = _answers(network.eval(), real.images)
    return RealScore(
        accuracy=float((answers == real.label_ids).mean()),
        balanced_accuracy=float(balanced_accuracy_score(real.label_ids, answers)),
    )


@torch.inference_mode()
def _answers(network: DomainExtractor, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    starts = range(0, len(images), _BATCH)
    parts = (torch.from_numpy(images[start : start + _BATCH]) for start in starts)
    logits = [network.label(network(part.float() / 255.0)) for part in parts]
    return np.asarray(torch.cat(logits).argmax(dim=1).numpy())
