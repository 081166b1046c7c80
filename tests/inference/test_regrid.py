"""The rule by which nnU-Net resamples, against skimage's own and against its words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.imaging.geometry import Geometry
from medserve.inference.regrid import CentreGrid, FixedGrid, SplineGrid
from medserve.spec.volumes import ResamplingKind, ResamplingSpec, ThickSlices
from tests.volume_phantoms import oblique

_SPLINE = ResamplingSpec(ResamplingKind.SPLINE)
_sides = st.tuples(*[st.integers(3, 9)] * 3)
_spacings = st.tuples(*[st.floats(0.8, 1.6)] * 3)


@settings(max_examples=25, deadline=None)
@given(shape=_sides, old=_spacings, new=_spacings, seed=st.integers(0, 99))
def test_splines_are_those_of_skimage(
    shape: tuple[int, int, int],
    old: tuple[float, float, float],
    new: tuple[float, float, float],
    seed: int,
) -> None:
    transform = pytest.importorskip("skimage.transform", reason="needs the train extra")
    region = Geometry.from_spacing(shape, old)
    image = np.random.default_rng(seed).normal(size=shape)
    grid = SplineGrid(_SPLINE, new)
    target = grid.shape(region)
    expected = transform.resize(image, target, 3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(grid.image(image, region), expected, atol=1e-6)


@settings(deadline=None)
@given(shape=_sides, old=_spacings, new=_spacings, axis=st.integers(0, 2))
def test_thick_slices_are_repeated_and_never_mixed(
    shape: tuple[int, int, int],
    old: tuple[float, float, float],
    new: tuple[float, float, float],
    axis: int,
) -> None:
    thick = [*old]
    thick[axis] = 4 * max(old)
    region = Geometry.from_spacing(shape, thick)
    index = np.arange(shape[axis], dtype=np.float64)
    image = np.broadcast_to(index.reshape([-1 if each == axis else 1 for each in range(3)]), shape)
    found = SplineGrid(_SPLINE, new).image(image, region)
    assert set(np.unique(found.round(9))) <= set(index)
    mixed = SplineGrid(
        ResamplingSpec(ResamplingKind.SPLINE, thick_slices=ThickSlices.NEVER), new
    ).image(image, region)
    if found.shape[axis] > 2 * shape[axis]:
        assert not set(np.unique(mixed.round(9))) <= set(index)


@settings(deadline=None)
@given(shape=_sides, old=_spacings, new=_spacings, seed=st.integers(0, 99))
def test_nothing_leaves_the_range_of_the_volume(
    shape: tuple[int, int, int],
    old: tuple[float, float, float],
    new: tuple[float, float, float],
    seed: int,
) -> None:
    image = (np.random.default_rng(seed).random(shape) > 0.5).astype(np.float32)
    found = SplineGrid(_SPLINE, new).image(image, Geometry.from_spacing(shape, old))
    assert image.min() <= found.min()
    assert found.max() <= image.max()


def test_scores_keep_the_rounding_of_sixteen_bits() -> None:
    region = Geometry.from_spacing((7, 6, 5), (1.0, 1.0, 1.0))
    grid = SplineGrid(_SPLINE, (1.5, 1.5, 1.5))
    scores = np.random.default_rng(0).normal(size=grid.shape(region)).astype(np.float16)
    back = grid.scores(scores, region)
    assert back.shape == region.shape
    np.testing.assert_array_equal(back, back.astype(np.float16).astype(np.float32))


@settings(deadline=None)
@given(shape=_sides, spacing=_spacings)
def test_a_spacing_of_zero_keeps_the_volumes_own(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    region = Geometry.from_spacing(shape, spacing)
    assert SplineGrid(_SPLINE, (0.0, 0.0, 0.0)).shape(region) == shape


@pytest.mark.parametrize("order", [0, 1])
def test_a_fixed_size_is_reached_from_any_shape_and_left_again(order: int) -> None:
    spec = ResamplingSpec(ResamplingKind.FIXED, order=order, inverse_order=order)
    grid = FixedGrid(spec, (8, 8, 8))
    region = Geometry.from_spacing((5, 9, 16), (2.0, 1.0, 0.5))
    image = np.ones(region.shape, dtype=np.float32)
    assert grid.image(image, region).shape == (8, 8, 8)
    np.testing.assert_allclose(grid.scores(grid.image(image, region), region), image, rtol=1e-6)


_centres = ResamplingSpec(ResamplingKind.CENTRES, order=1)
_shears = st.sampled_from([0.0, 1e-9, 1e-7, 0.2])  # none, below and above MONAI's limit, a tilt


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore")  # MONAI's own
@settings(max_examples=40, deadline=None)
@given(
    shape=_sides, old=_spacings, new=_spacings, shear=_shears, is_oblique=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_centres_are_those_of_monais_spacing_and_of_its_inverse(
    shape: tuple[int, int, int],
    old: tuple[float, float, float],
    new: tuple[float, float, float],
    shear: float,
    is_oblique: bool,
    seed: int,
) -> None:
    torch = pytest.importorskip("torch")
    data = pytest.importorskip("monai.data.meta_tensor", reason="needs the import extra")
    transforms = pytest.importorskip("monai.transforms", reason="needs the import extra")
    region = oblique(shape, old) if is_oblique else Geometry.from_spacing(shape, old)
    affine = region.affine.copy()
    affine[1, 2] += shear
    region = Geometry(shape, affine)
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    spacing = transforms.Spacing(pixdim=new, mode="bilinear")
    there = spacing(data.MetaTensor(torch.from_numpy(image[None]), affine=affine))
    grid = CentreGrid(_centres, new)
    found = grid.image(image, region)
    assert found.shape == grid.shape(region) == tuple(there.shape[1:])
    np.testing.assert_allclose(found, there[0].numpy(), atol=1e-4)
    back = spacing.inverse(there)[0].numpy()
    np.testing.assert_allclose(grid.scores(found, region), back, atol=1e-4)


def test_a_spacing_that_is_kept_changes_nothing() -> None:
    region = Geometry.from_spacing((5, 4, 3), (1.0, 1.0005, 2.0))
    image = np.random.default_rng(0).normal(size=region.shape).astype(np.float32)
    np.testing.assert_array_equal(CentreGrid(_centres, (1.0, 1.0, 0.0)).image(image, region), image)
