from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from medserve.errors import ConfigError
from medserve.inference import filters
from medserve.spec.frames import Conduction, FilterKind, FilterSpec

_Plane = npt.NDArray[np.float32]

# Four steps of medpy 0.5.2: `anisotropic_diffusion(textured(8, 8)[:5, :6], niter=4, kappa=0.08,
# gamma=0.2, option=...)`, options 1 and 2.
_MEDPY = {
    Conduction.EXPONENTIAL: [
        [0.310764, 0.320586, 0.324739, 0.326905, 0.325157, 0.321696],
        [0.529377, 0.326156, 0.324544, 0.325855, 0.325168, 0.323157],
        [0.527905, 0.527107, 0.321025, 0.325080, 0.326271, 0.325850],
        [0.528322, 0.529899, 0.533962, 0.328765, 0.329221, 0.328940],
        [0.529515, 0.531596, 0.535329, 0.537273, 0.331333, 0.331001],
    ],
    Conduction.RATIONAL: [
        [0.329008, 0.330812, 0.328007, 0.327383, 0.325111, 0.321739],
        [0.491602, 0.359550, 0.336367, 0.329176, 0.325716, 0.323206],
        [0.513482, 0.495141, 0.350783, 0.336510, 0.329209, 0.326293],
        [0.524391, 0.518140, 0.503413, 0.360071, 0.338102, 0.330928],
        [0.528922, 0.527655, 0.521060, 0.498972, 0.346689, 0.335062],
    ],
}
# Three steps of the Rodinia benchmark suite's SRAD (a C program) with lambda 0.5 on
# exp(textured(8, 8)); it takes q0 anew in each step, from the square 4 x 4 of the upper left.
_RODINIA_SPECKLE = (0.101563674, 0.0949719681, 0.0891790159)
_RODINIA = [
    [0.331448, 0.322061, 0.324936, 0.331975, 0.328364, 0.319825, 0.320219, 0.320370],
    [0.489133, 0.377571, 0.333327, 0.328156, 0.324253, 0.324204, 0.324914, 0.320219],
    [0.525834, 0.488477, 0.355961, 0.331584, 0.325096, 0.326348, 0.324204, 0.319825],
    [0.523118, 0.515420, 0.503636, 0.377919, 0.334106, 0.325870, 0.324297, 0.328364],
    [0.524340, 0.525789, 0.528392, 0.499455, 0.375843, 0.335980, 0.328036, 0.331961],
    [0.519507, 0.523722, 0.527292, 0.527202, 0.501039, 0.356679, 0.328684, 0.325064],
    [0.528573, 0.527535, 0.523743, 0.526086, 0.518297, 0.489078, 0.376553, 0.330003],
    [0.537131, 0.528573, 0.519507, 0.524401, 0.523691, 0.525418, 0.476359, 0.341149],
]
_NEPER_DB = 20.0 / np.log(10.0)  # the dynamic range in which a display value of 1 is one e
_ALL = [FilterSpec(kind) for kind in FilterKind]


def textured(height: int, width: int) -> _Plane:
    """A diagonal edge under a pattern without symmetry."""
    row, column = np.mgrid[:height, :width]
    pattern = (7 * row + 11 * column + row * column) % 5 / 4
    return np.asarray(0.3 + 0.2 * (row > column) + 0.05 * pattern, dtype=np.float32)


def speckled(low: float, high: float, looks: int = 4) -> _Plane:
    """Two halves of other brightness under multiplicative noise, compressed over 50 dB."""
    generator = np.random.default_rng(seed=2)
    clean = np.full((64, 96), low)
    clean[:, 48:] = high
    amplitude = clean * generator.gamma(looks, 1.0 / looks, clean.shape)
    return np.asarray(np.clip(1 + np.log10(amplitude) * 20 / 50, 0, 1), dtype=np.float32)


@pytest.mark.parametrize("conduction", list(Conduction))
def test_perona_malik_gives_what_an_independent_program_gives(conduction: Conduction) -> None:
    spec = FilterSpec(FilterKind.PERONA_MALIK, 4, 0.2, conduction, contrast=0.08)
    found = filters.apply(textured(8, 8)[:5, :6], spec)
    np.testing.assert_allclose(found, _MEDPY[conduction], atol=2e-6)


def test_srad_gives_what_an_independent_program_gives() -> None:
    plane = textured(8, 8)
    for speckle in _RODINIA_SPECKLE:
        spec = FilterSpec(
            FilterKind.SRAD, 1, 0.5 / 4, dynamic_range_db=_NEPER_DB, speckle=speckle, decay=0.0
        )
        plane = filters.apply(plane, spec)
    np.testing.assert_allclose(plane, _RODINIA, atol=2e-6)


def test_the_time_that_passes_lowers_what_srad_takes_for_speckle() -> None:
    plane, spec = speckled(0.05, 0.4), FilterSpec(FilterKind.SRAD, 2, 0.2, speckle=0.5, decay=0.3)
    one = structs.replace(spec, iterations=1)
    second = structs.replace(one, speckle=0.5 * np.exp(-0.3 * 4 * 0.2))
    by_hand = filters.apply(filters.apply(plane, one), second)
    np.testing.assert_allclose(filters.apply(plane, spec), by_hand, atol=1e-5)


def test_without_edges_perona_malik_is_a_gaussian() -> None:
    impulse = np.zeros((41, 41), dtype=np.float32)
    impulse[20, 20] = 1.0
    spec = FilterSpec(FilterKind.PERONA_MALIK, iterations=40, step=0.05, contrast=1e3)
    diffused = filters.apply(impulse, spec)
    blurred = filters.gaussian(impulse, sigma=float(np.sqrt(2 * 40 * 0.05)))
    np.testing.assert_allclose(diffused, blurred, atol=0.002)


def test_the_gaussian_spreads_an_impulse_by_its_sigma() -> None:
    impulse = np.zeros((31, 41), dtype=np.float32)
    impulse[15, 20] = 1.0
    blurred = filters.gaussian(impulse, sigma=2.0)
    row, column = np.mgrid[-15:16, -20:21]
    expected = np.exp(-(row**2 + column**2) / 8.0)
    np.testing.assert_allclose(blurred, expected / expected.sum(), atol=2e-5)


@pytest.mark.parametrize("kind", [FilterKind.PERONA_MALIK, FilterKind.SRAD])
def test_a_diffusion_smooths_speckle_and_keeps_the_edge(kind: FilterKind) -> None:
    plane = speckled(0.03, 0.5)
    diffused = filters.apply(plane, FilterSpec(kind, iterations=20, contrast=0.15))
    blurred = filters.gaussian(plane, sigma=float(np.sqrt(2 * 20 * 0.2)))
    noise = [each[8:-8, 8:32].std() for each in (plane, diffused)]
    steps = [each[:, 49:51].mean() - each[:, 45:47].mean() for each in (plane, diffused, blurred)]
    assert noise[1] < 0.5 * noise[0]
    assert steps[1] > 0.9 * steps[0] > 1.5 * steps[2]


def test_the_speckle_of_a_frame_is_estimated_from_its_even_tissue() -> None:
    # Amplitudes whose logarithm has a normal deviation s vary by about s; black does not count.
    generator = np.random.default_rng(seed=3)
    noise = [generator.normal(0.0, s, (128, 128)) for s in (0.1, 0.2)]
    small, large = (
        filters.estimate_speckle(np.exp(each - 1.0).astype(np.float32)) for each in noise
    )
    assert large == pytest.approx(2 * small, rel=0.02)
    assert 0.05 < small < 0.2
    framed = np.pad(np.exp(noise[0] - 1.0).astype(np.float32), 60, constant_values=1e-3)
    assert filters.estimate_speckle(framed) == pytest.approx(small, rel=0.05)


def test_the_mean_stays_where_nothing_flows_over_the_border() -> None:
    plane = textured(40, 30)
    for kind in (FilterKind.PERONA_MALIK, FilterKind.SRAD, FilterKind.GAUSSIAN):
        found = filters.apply(plane, FilterSpec(kind, dynamic_range_db=0.0))
        assert found.mean() == pytest.approx(plane.mean(), rel=1e-4), kind


@pytest.mark.parametrize("spec", _ALL, ids=[spec.kind.value for spec in _ALL])
def test_a_filter_keeps_range_type_and_its_input(spec: FilterSpec) -> None:
    plane = speckled(0.02, 0.9)
    before = plane.copy()
    found = filters.apply(plane, spec)
    assert found.dtype == np.float32
    assert found.shape == plane.shape
    assert plane.min() - 1e-5 <= found.min() <= found.max() <= plane.max() + 1e-5
    np.testing.assert_array_equal(plane, before)


@pytest.mark.parametrize("spec", _ALL, ids=[spec.kind.value for spec in _ALL])
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_a_constant_frame_stays_as_it_is(spec: FilterSpec, value: float) -> None:
    plane = np.full((20, 24), value, dtype=np.float32)
    np.testing.assert_allclose(filters.apply(plane, spec), plane, atol=1e-6)


def test_only_a_pixel_a_side_is_enough_for_a_filter() -> None:
    for spec in _ALL:
        assert filters.apply(np.full((1, 1), 0.5, dtype=np.float32), spec).shape == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": 0.3}, "unstable"),
        ({"step": 0.0}, "above 0"),
        ({"iterations": 0}, "at least 1 iteration"),
        ({"contrast": 0.0}, "contrast above 0"),
        ({"sigma": float("nan")}, "sigma above 0"),
        ({"decay": -1.0}, "decay of at least 0"),
    ],
)
def test_parameters_that_cannot_work_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FilterSpec(**wrong)  # type: ignore[arg-type]
