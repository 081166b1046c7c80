"""What can be done about speckle: two anisotropic diffusions, and the Gaussian they improve on.

All take a plane float32 (H, W) in [0, 1] and give a new one; no value leaves the range of its
input. Fluxes live on the edges between two pixels and each is added on one side and taken from the
other, so the diffusions keep the mean (of what they diffuse) and nothing flows over the border.

"Isotropic diffusion", as speckle reduction is often called, is the Gaussian: after n steps of
length t it blurs like sigma = sqrt(2 n t) pixels, edges included.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medserve.spec.frames import Conduction, FilterKind, FilterSpec

__all__ = ["apply", "estimate_speckle", "gaussian", "perona_malik", "srad"]

_Plane = npt.NDArray[np.float32]

_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_LEAST_SPECKLE = 1e-3  # a constant frame has none; q0 is divided by


def apply(plane: _Plane, spec: FilterSpec) -> _Plane:
    """The filter that a model's configuration states; without one the plane itself."""
    if spec.kind is FilterKind.PERONA_MALIK:
        return perona_malik(plane, spec)
    if spec.kind is FilterKind.SRAD:
        return srad(plane, spec)
    if spec.kind is FilterKind.GAUSSIAN:
        return gaussian(plane, spec.sigma)
    return plane


def perona_malik(plane: _Plane, spec: FilterSpec) -> _Plane:
    """Anisotropic diffusion (Perona and Malik, IEEE PAMI 12(7), 1990, eq. 7 and 8).

    Between neighbours that differ by d flows g(d) d with g = exp(-(d / K)^2), or 1 / (1 + (d /
    K)^2): much inside a region, little over an edge.
    """
    values = plane.astype(np.float32)  # a copy, worked on in place
    down, right = np.empty_like(values[1:]), np.empty_like(values[:, 1:])
    conducted = np.empty_like(down), np.empty_like(right)
    for _ in range(spec.iterations):
        np.subtract(values[1:], values[:-1], out=down)
        np.subtract(values[:, 1:], values[:, :-1], out=right)
        for difference, conduction in zip((down, right), conducted, strict=True):
            _conduct(difference, conduction, spec)
        _flow(values, down, right)
    return values


def _conduct(difference: _Plane, conduction: _Plane, spec: FilterSpec) -> None:
    """Differences between neighbours -> what flows in one step, in place."""
    np.multiply(difference, np.float32(1.0 / spec.contrast), out=conduction)
    np.multiply(conduction, conduction, out=conduction)
    if spec.conduction is Conduction.EXPONENTIAL:
        np.negative(conduction, out=conduction)
        np.exp(conduction, out=conduction)
    else:
        conduction += np.float32(1.0)
        np.reciprocal(conduction, out=conduction)
    difference *= conduction
    difference *= np.float32(spec.step)


def _flow(values: _Plane, down: _Plane, right: _Plane) -> None:
    """Move what crosses each edge between two pixels from the one to the other, in place."""
    values[:-1] += down
    values[1:] -= down
    values[:, :-1] += right
    values[:, 1:] -= right


def srad(plane: _Plane, spec: FilterSpec) -> _Plane:
    """Speckle-reducing anisotropic diffusion (Yu and Acton, IEEE TIP 11(11), 2002, eq. 28 to 37).

    Speckle multiplies: bright tissue has more of it. The local coefficient of variation q is
    compared with q0, that of homogeneous tissue: where q is near q0 there is only speckle, and it
    is smoothed; where q is larger there is an edge, and it stays. The model is one of amplitudes,
    so the scanner's logarithm is taken back first and put on again afterwards.
    """
    amplitude = _decompress(plane, spec.dynamic_range_db)
    speckle = spec.speckle or estimate_speckle(amplitude)
    scratch = _Scratch(amplitude)
    for iteration in range(spec.iterations):
        # `step` is a quarter of the paper's, whose scheme divides it by 4.
        at_this_time = speckle * math.exp(-spec.decay * 4.0 * spec.step * iteration)
        _srad_step(amplitude, scratch, max(at_this_time, _LEAST_SPECKLE), spec.step)
    return _compress(amplitude, spec.dynamic_range_db)


def estimate_speckle(amplitude: _Plane) -> float:
    """The coefficient of variation of homogeneous tissue, from a whole frame.

    By the median absolute deviation of the gradient of its logarithm, which edges, being few, do
    not move (Yu and Acton, IEEE TIP 13(12), 2004). Pixels as dark as the darkest (outside of the
    scan) do not count.
    """
    logarithm = np.log(np.maximum(amplitude, np.float32(1e-6)))
    down = np.diff(logarithm, axis=0)[:, :-1]
    right = np.diff(logarithm, axis=1)[:-1]
    gradient = np.sqrt(down * down + right * right)
    counted = gradient[amplitude[:-1, :-1] > amplitude.min()]
    if counted.size == 0:
        return _LEAST_SPECKLE
    deviation = float(np.median(np.abs(counted - np.median(counted))))
    return max(_MAD_TO_DEVIATION * deviation / math.sqrt(2.0), _LEAST_SPECKLE)


def gaussian(plane: _Plane, sigma: float) -> _Plane:
    """Convolution with a Gaussian; the frame is mirrored at its border."""
    return np.asarray(
        ndimage.gaussian_filter(plane, sigma, mode="reflect", truncate=4.0), dtype=np.float32
    )


class _Scratch:
    """Planes that every step of SRAD writes anew: allocating them each time took half of it."""

    def __init__(self, like: _Plane) -> None:
        self.down = np.empty_like(like[1:])
        self.right = np.empty_like(like[:, 1:])
        self.down_squared = np.empty_like(self.down)
        self.right_squared = np.empty_like(self.right)
        self.laplacian = np.empty_like(like)
        self.squared = np.empty_like(like)
        self.inverse = np.empty_like(like)


def _srad_step(values: _Plane, scratch: _Scratch, speckle: float, step: float) -> None:
    """One explicit step in place; amplitudes above 0."""
    down, right = scratch.down, scratch.right
    np.subtract(values[1:], values[:-1], out=down)
    np.subtract(values[:, 1:], values[:, :-1], out=right)
    scratch.laplacian.fill(0.0)
    _flow(scratch.laplacian, down, right)
    squared = scratch.squared  # of the four differences, summed
    squared.fill(0.0)
    np.multiply(down, down, out=scratch.down_squared)
    np.multiply(right, right, out=scratch.right_squared)
    squared[:-1] += scratch.down_squared
    squared[1:] += scratch.down_squared
    squared[:, :-1] += scratch.right_squared
    squared[:, 1:] += scratch.right_squared
    conduction = _conduction(values, scratch, speckle * speckle)
    conduction *= np.float32(step)
    # The paper takes the conduction of the further pixel of each edge (eq. 36).
    down *= conduction[1:]
    right *= conduction[:, 1:]
    _flow(values, down, right)


def _conduction(values: _Plane, scratch: _Scratch, homogeneous: float) -> _Plane:
    """c(q) in [0, 1] by eq. 33 and the instantaneous coefficient of variation q (eq. 28).

    Where q is below q0 the formula exceeds 1; it is cut there, which keeps the step stable.
    """
    laplacian, variation, inverse = scratch.laplacian, scratch.squared, scratch.inverse
    np.reciprocal(values, out=inverse)
    laplacian *= inverse
    np.multiply(inverse, inverse, out=inverse)
    inverse *= np.float32(0.5)
    variation *= inverse
    np.multiply(laplacian, laplacian, out=inverse)
    inverse *= np.float32(1.0 / 16.0)
    variation -= inverse
    laplacian *= np.float32(0.25)
    laplacian += np.float32(1.0)
    np.multiply(laplacian, laplacian, out=laplacian)
    np.maximum(laplacian, np.float32(1e-12), out=laplacian)
    variation /= laplacian  # q squared
    variation -= np.float32(homogeneous)
    variation *= np.float32(1.0 / (homogeneous * (1.0 + homogeneous)))
    np.maximum(variation, np.float32(0.0), out=variation)
    variation += np.float32(1.0)
    np.reciprocal(variation, out=variation)
    return variation


def _decompress(plane: _Plane, dynamic_range_db: float) -> _Plane:
    """Display values -> amplitudes above 0, the brightest 1."""
    if dynamic_range_db == 0.0:
        return np.maximum(plane, np.float32(1e-6))
    exponent = (plane - np.float32(1.0)) * np.float32(dynamic_range_db / 20.0 * math.log(10.0))
    return np.asarray(np.exp(exponent), dtype=np.float32)


def _compress(amplitude: _Plane, dynamic_range_db: float) -> _Plane:
    if dynamic_range_db == 0.0:
        return amplitude
    display = np.log(amplitude) * np.float32(20.0 / (dynamic_range_db * math.log(10.0)))
    display += 1.0
    return np.asarray(np.clip(display, 0.0, 1.0), dtype=np.float32)
