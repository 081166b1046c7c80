"""Which places of an image an answer rests on, found by covering them and asking again.

The image is divided into cells. In each of a fixed number of copies half of the cells are covered
with the image's mean, and how much the odds of the answered class lose wherever one cell is
covered, on average over all others, is what that cell speaks for the class. Which half is covered
in which copy is a Hadamard design and its complement: every cell is visible in half of the copies,
every two cells are visible together in a quarter of them, so that no cell's share leaks into
another's (Plackett and Burman, Biometrika 33, 1946), nor does what two cells do together.

Covering one place at a time (Zeiler and Fergus, ECCV 2014, arXiv:1311.2901) needs less, and fails
where evidence is redundant: the rest of the image still shows what it is. The figures are in
`docs/use/explanations.md`. Random halves (Petsiuk et al., BMVC 2018, arXiv:1806.07421) need
several times as many copies for the same.

It takes nothing but the network's outputs, so it works in every engine and for every classifier,
differentiable or not. The odds are compared as logarithms: a network that is sure to four digits
loses evidence long before its probability moves. The price is `ROWS` rows of the network for an
image, whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medserve.inference.engines import Outputs
from medserve.inference.fit import Box

__all__ = ["ROWS", "Occlusion", "log_odds", "occlude"]

_CELLS = 7  # along each side: 49 of the 63 columns that a design of 64 copies has
_ORDER = 64
_BATCH = 32  # rows in one call of the engine; between two calls a caller may give up
_QUARTER = 4  # of an image is covered to check its map

ROWS = 1 + 2 * _ORDER + 2  # as it is, design and complement, check

_Rows = npt.NDArray[np.float32]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What covering an image did to the network's answer.

    Attributes:
        outputs: The network's outputs for the image as it is, one row each.
        label_id: The class whose odds were watched.
        evidence: Log-odds that the class owes to the cells around a pixel, in nats: (H, W) of
            the image on the network's plane; below zero where covering helps the class.
        without_warmest: Its log-odds with the quarter of the image covered that speaks most for
            it. A map that tells the truth makes this much lower than the next.
        without_coolest: The same with the quarter that speaks least.
    """

    outputs: Outputs
    label_id: int
    evidence: _Floats
    without_warmest: float
    without_coolest: float


def occlude(
    row: _Rows,
    box: Box,
    run: Callable[[_Rows], Outputs],
    between: Callable[[], None] = lambda: None,
    thresholds: _Floats | None = None,
) -> Occlusion:
    """Find what speaks for the most probable class of an image, or for one label among several.

    Args:
        row: The network's input for one image, (C, H, W).
        box: Where on it the image lies; what lies around it is never covered.
        run: Rows (N, C, H, W) -> outputs, among them `logits` (N, K).
        between: Called before each call of the network; raises to give up.
        thresholds: Of labels that do not exclude each other, the logit from which each is present
            (K,); the label that lies the furthest above its own is explained, present or not.
    """
    between()
    outputs = run(row[np.newaxis])
    above = outputs["logits"][0] - (0.0 if thresholds is None else thresholds)
    label_id = int(above.argmax())

    def odds(masks: _Floats) -> _Floats:
        between()
        logits = run(_covered(row, box, masks))["logits"]
        if thresholds is not None:
            return np.asarray(logits[:, label_id], dtype=np.float64)
        return log_odds(logits, label_id)

    down, across = _interpolation(box.height), _interpolation(box.width)
    design = _design(down.shape[1] * across.shape[1])  # (N, cells)
    grids = design.reshape(len(design), down.shape[1], across.shape[1])
    seen = [odds(down @ grids[part] @ across.T) for part in _parts(len(grids))]
    # Every cell is visible in one half of the copies and covered in the other.
    gains = (2 * design - 1).T @ np.concatenate(seen) / (len(design) / 2)
    evidence = down @ gains.reshape(grids.shape[1:]) @ across.T
    warmest, coolest = odds(np.stack([_without_top(evidence), _without_top(-evidence)]))
    return Occlusion(outputs, label_id, evidence, float(warmest), float(coolest))


def log_odds(logits: npt.NDArray[np.floating], label_id: int) -> _Floats:
    """Logits (N, K) -> log of p / (1 - p) of one class (N,), exact where p rounds to 1."""
    exact = logits.astype(np.float64)
    others = np.delete(exact, label_id, axis=1)  # (N, K - 1)
    largest = others.max(axis=1)
    sums = np.exp(others - largest[:, np.newaxis]).sum(axis=1)
    return np.asarray(exact[:, label_id] - largest - np.log(sums))


def _design(cells: int) -> _Floats:
    """Which cell is visible (1) in which copy, and the same the other way round: (N, cells)."""
    numbers = np.arange(_ORDER)
    # Sylvester's matrix: whether two numbers share an odd number of bits.
    parity = np.bitwise_count(numbers[:, np.newaxis] & numbers) % 2
    # In their own order columns next to each other make regular patterns on the image.
    columns = 1 + np.random.default_rng(0).permutation(_ORDER - 1)[:cells]
    half = parity[:, columns].astype(np.float64)
    return np.concatenate([half, 1 - half])


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + _BATCH) for start in range(0, rows, _BATCH))


def _interpolation(length: int) -> _Floats:
    """Weights that spread cells over pixels, linearly between their centres: (length, cells)."""
    cells = min(_CELLS, length)
    places = (np.arange(length) + 0.5) * cells / length - 0.5
    distances = np.abs(places.clip(0, cells - 1)[:, np.newaxis] - np.arange(cells))
    return (1 - distances).clip(0, None)


def _without_top(values: _Floats) -> _Floats:
    """A mask that covers the quarter with the highest values."""
    mask = np.ones(values.size)
    mask[np.argsort(-values, axis=None, kind="stable")[: -(-values.size // _QUARTER)]] = 0
    return mask.reshape(values.shape)


def _covered(row: _Rows, box: Box, masks: _Floats) -> _Rows:
    """A copy of the row for each mask (N, H, W), its image fading to its mean where they say 0."""
    copies = np.repeat(row[np.newaxis], len(masks), axis=0)  # (N, C, H, W)
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    image = row[:, rows, columns]
    means = image.mean(axis=(1, 2), keepdims=True)  # (C, 1, 1), no padding in it
    weights = masks[:, np.newaxis].astype(np.float32)
    copies[:, :, rows, columns] = means + weights * (image - means)
    return copies
