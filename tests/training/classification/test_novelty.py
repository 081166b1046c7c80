"""Novelty against distances worked out by another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from torch import Tensor

from medserve.errors import ConfigError
from training.classification.novelty import Novelty, describe, fit_novelty


@pytest.fixture(scope="module")
def vectors() -> tuple[Tensor, Tensor]:
    """Two classes in five dimensions, far apart and of different spread: (4000, 5), (4000,)."""
    generator = torch.Generator().manual_seed(0)
    label_ids = torch.arange(4000) % 2
    spread = torch.tensor([[1.0, 2.0, 0.5, 1.0, 3.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    centre = torch.tensor([[0.0] * 5, [20.0] * 5])
    draws = torch.randn(4000, 5, generator=generator)
    return centre[label_ids] + spread[label_ids] * draws, label_ids


@pytest.fixture(scope="module")
def novelty(vectors: tuple[Tensor, Tensor]) -> Novelty:
    described, label_ids = vectors
    held_out = described[2000:], named(label_ids[2000:])
    return fit_novelty(described[:2000], label_ids[:2000], held_out, least_contrast=0.01)


def named(label_ids: Tensor) -> Tensor:
    """Logits (N, 2) by which each image gets that label."""
    return torch.nn.functional.one_hot(label_ids, 2).float()


def test_one_in_two_hundred_held_out_images_is_above_the_limit(
    novelty: Novelty, vectors: tuple[Tensor, Tensor]
) -> None:
    described, label_ids = (each[2000:] for each in vectors)
    distance = novelty.distance(described, named(label_ids))
    assert int((distance > novelty.limit).sum()) == 10


def test_distance_is_mahalanobis_to_the_class_of_the_answer(
    novelty: Novelty, vectors: tuple[Tensor, Tensor]
) -> None:
    described, label_ids = (each[:2000].double().numpy() for each in vectors)
    members = [described[label_ids == k] for k in (0, 1)]
    covariances = [np.cov(each.T, bias=True) for each in members]
    sizes = [len(each) for each in members]
    common = sum(n * c for n, c in zip(sizes, covariances, strict=True)) / sum(sizes)
    ridge = 1e-4 * np.diag(common).mean() * np.eye(5)
    point = np.array([1.0, -2.0, 3.0, 4.0, 5.0])
    expected = [
        mahalanobis(point, each.mean(0), np.linalg.inv(0.95 * own + 0.05 * common + ridge))
        for each, own in zip(members, covariances, strict=True)
    ]
    points = torch.tensor(point, dtype=torch.float32).expand(2, 5)
    measured = novelty.distance(points, named(torch.tensor([0, 1]))).tolist()
    assert measured == pytest.approx(expected, rel=1e-4)


def test_an_image_among_one_class_that_is_called_another_is_unlike(
    novelty: Novelty, vectors: tuple[Tensor, Tensor]
) -> None:
    described, label_ids = (each[2000:] for each in vectors)
    wrong = novelty.distance(described, named(1 - label_ids))
    assert float(wrong.min()) > float(novelty.limit)


@pytest.mark.parametrize("label_id", [0, 1])
def test_a_point_between_the_classes_is_unlike_both(novelty: Novelty, label_id: int) -> None:
    distance = novelty.distance(torch.full((1, 5), 10.0), named(torch.tensor([label_id])))
    assert float(distance) > 2 * float(novelty.limit)


def test_a_blank_image_is_unlike_whatever_its_features(novelty: Novelty) -> None:
    image = torch.full((2, 1, 8, 8), 0.4)
    image[1, 0, :4] = 0.6  # shows something
    maps = [torch.zeros(2, 1, 2, 2), torch.zeros(2, 4, 2, 2)]
    flat, seen = novelty(image, maps, named(torch.tensor([0, 0])))
    assert float(flat) > 1.0
    assert float(flat) > float(seen)


def test_description_is_the_log_of_each_channels_mean_of_the_last_two_stages() -> None:
    maps = [torch.full((3, 2, 8, 8), 9.0), torch.full((3, 2, 4, 4), 0.99), torch.zeros(3, 1, 2, 2)]
    described = describe(maps)
    expected = torch.tensor([[0.0, 0.0, np.log(0.01)]]).expand(3, 3)
    torch.testing.assert_close(described, expected.float())


def test_a_class_of_one_image_is_refused() -> None:
    held_out = torch.randn(3, 2), named(torch.tensor([0, 0, 1]))
    with pytest.raises(ConfigError, match="two images or more"):
        fit_novelty(torch.randn(3, 2), torch.tensor([0, 0, 1]), held_out, 0.01)
