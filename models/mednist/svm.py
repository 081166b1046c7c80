"""A support vector machine on principal components, in tensors: the same answers as scikit-learn's.

scikit-learn fits it and skl2onnx exports it; this form is the TorchScript twin, and says what
the served outputs are made of.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FittedSvm", "PairwiseLogits", "SupportVectorMachine"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FittedSvm:
    """What a fitted pipeline of shrinking, PCA, scaling and SVC consists of.

    Attributes:
        shrink: Pixels along each side that become one, by their mean.
        components: (D, F) of the PCA.
        centre: (F,), taken off before it.
        mean: (D,) of the components over the training images.
        deviation: (D,) of the same.
        vectors: (S, D), scaled support vectors, sorted by class.
        per_class: Number of them in each class, K numbers.
        coefficients: (K - 1, S), as libsvm keeps them.
        intercepts: One for each pair of classes.
        gamma: Of the kernel exp(-gamma |x - y|^2); None for the linear kernel.
    """

    shrink: int
    components: Array
    centre: Array
    mean: Array
    deviation: Array
    vectors: Array
    per_class: tuple[int, ...]
    coefficients: Array
    intercepts: Array
    gamma: float | None

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of classes (i, j), i < j, in the order of the decisions."""
        return list(itertools.combinations(range(len(self.per_class)), 2))

    def weights(self) -> Array:
        """Weight of each support vector in each pair's decision (S, P).

        Row j - 1 of libsvm's coefficients belongs to the pairs of class j for vectors of a lower
        class, row i to those of class i for vectors of a higher one.
        """
        ends = np.cumsum(self.per_class)
        starts = ends - self.per_class
        weights = np.zeros((len(self.vectors), len(self.pairs)))
        for pair, (i, j) in enumerate(self.pairs):
            first, second = slice(starts[i], ends[i]), slice(starts[j], ends[j])
            weights[first, pair] = self.coefficients[j - 1, first]
            weights[second, pair] = self.coefficients[i, second]
        return weights


class SupportVectorMachine(nn.Module):
    """Image -> small plane -> scaled components -> one decision for each pair of classes."""

    def __init__(self, fitted: FittedSvm) -> None:
        super().__init__()
        self.shrink, self.gamma = fitted.shrink, fitted.gamma
        self.components: Tensor
        self.centre: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        self.vectors: Tensor
        self.weights: Tensor
        self.intercepts: Tensor
        for name, values in (
            ("components", fitted.components),
            ("centre", fitted.centre),
            ("mean", fitted.mean),
            ("deviation", fitted.deviation),
            ("vectors", fitted.vectors),
            ("weights", fitted.weights()),
            ("intercepts", fitted.intercepts),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)).float())

    def small(self, image: Tensor) -> Tensor:
        """Image (N, 1, H, W) in [0, 1] -> rows (N, F) of its means over squares."""
        return F.avg_pool2d(image, self.shrink).flatten(1)

    def features(self, small: Tensor) -> Tensor:
        """Rows (N, F) -> scaled principal components (N, D)."""
        return ((small - self.centre) @ self.components.T - self.mean) / self.deviation

    def decisions(self, features: Tensor) -> Tensor:
        """Scaled components (N, D) -> one number a pair (N, P); above 0 the lower class wins."""
        products = features @ self.vectors.T  # (N, S)
        if self.gamma is None:
            return products @ self.weights + self.intercepts
        lengths = features.square().sum(dim=1, keepdim=True) + self.vectors.square().sum(dim=1)
        kernel = torch.exp(-self.gamma * (lengths - 2.0 * products).clamp(min=0.0))
        return kernel @ self.weights + self.intercepts


class PairwiseLogits(nn.Module):
    """One logit for each class: how surely it wins against all others, pair by pair.

    A decision d makes its winner as probable as 1 / (1 + exp(-d)) (Platt, Advances in Large
    Margin Classifiers, 1999); a class is as probable as the product over its pairs. Counting wins
    alone, as libsvm does, says nothing about how near a loss was.
    """

    wins: Tensor
    losses: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        pairs = list(itertools.combinations(range(classes), 2))
        wins, losses = torch.zeros(2, len(pairs), classes)
        for pair, (i, j) in enumerate(pairs):
            wins[pair, i] = losses[pair, j] = 1.0
        self.register_buffer("wins", wins)
        self.register_buffer("losses", losses)

    def forward(self, decisions: Tensor) -> Tensor:
        """Decisions (N, P) -> logits (N, K)."""
        # log(sigmoid(d)) = d - softplus(d). ONNX has no stable op for the left side: far from the
        # boundary the sigmoid is 0 there, and its log minus infinity.
        soft = F.softplus(decisions)
        return (decisions - soft) @ self.wins - soft @ self.losses
