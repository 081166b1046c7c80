"""The simulator against physics and geometry that were not taken from its code."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pytest

from simulation.acoustics import (
    Fan,
    Probe,
    Receiver,
    compress,
    envelope,
    scan_convert,
    white_noise,
)
from simulation.anatomy import Gland, volume_ml
from simulation.simulate import (
    SimulationConfig,
    draw_patient,
    simulate_cine,
    simulate_frame,
)
from simulation.tissue import SOFT_TISSUE, Tissue

SMALL = SimulationConfig(height=112, width=144)
PLAIN = dataclasses.replace(SMALL, overlays=False)
PROBE = Probe(
    radius_mm=60.0, opening=0.9, reach_mm=50.0, frequency_mhz=7.0, focus_mm=20.0, f_number=2.5,
    samples=500, lines=600,
)  # fmt: skip


def even_tissue(attenuation: npt.NDArray[np.float64] | None = None) -> Tissue:
    shape = (PROBE.samples, PROBE.lines)
    nothing = np.zeros(shape, dtype=bool)
    return Tissue(
        echo_db=np.zeros(shape),
        attenuation=np.full(shape, SOFT_TISSUE) if attenuation is None else attenuation,
        capsule=np.zeros(shape),
        gland=nothing,
        lesion=nothing,
        urethra=nothing,
    )


@pytest.fixture(scope="module")
def amplitude() -> npt.NDArray[np.float64]:
    """Echo of even tissue, before compression."""
    return envelope(even_tissue(), white_noise(PROBE, np.random.default_rng(1)), PROBE)


def test_speckle_of_even_tissue_is_fully_developed(amplitude: npt.NDArray[np.float64]) -> None:
    assert (amplitude**2).mean() == pytest.approx(1.0, abs=0.03)
    # Mean over deviation of a Rayleigh distribution.
    expected = math.sqrt(math.pi / (4 - math.pi))
    assert amplitude.mean() / amplitude.std() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("row", "lag"), [(200, 2), (400, 7)])  # at the focus, and far behind
def test_speckle_is_as_wide_as_the_beam_at_that_depth(
    row: int, lag: int, amplitude: npt.NDArray[np.float64]
) -> None:
    rows = amplitude[row - 20 : row + 20] ** 2
    rows = rows - rows.mean()
    correlation = (rows[:, lag:] * rows[:, :-lag]).mean() / (rows**2).mean()
    # Intensities behind a Gaussian beam of deviation s correlate by exp(-d^2 / (2 s^2)).
    radius = PROBE.radius_mm + PROBE.depth_mm[row]
    distance_mm = lag * PROBE.opening / (PROBE.lines - 1) * radius
    width_mm = distance_mm / math.sqrt(-2 * math.log(correlation))
    assert width_mm == pytest.approx(PROBE.beam_mm[row], rel=0.12)


def test_beam_is_narrowest_at_the_focus() -> None:
    assert PROBE.depth_mm[int(PROBE.beam_mm.argmin())] == pytest.approx(PROBE.focus_mm, abs=0.2)


def test_body_darkens_what_lies_behind_it_by_its_attenuation(
    amplitude: npt.NDArray[np.float64],
) -> None:
    attenuation = np.full((PROBE.samples, PROBE.lines), SOFT_TISSUE)
    depth_mm = PROBE.depth_mm
    attenuation[(depth_mm >= 10) & (depth_mm < 12)] += 3.0  # dB / cm / MHz over 2 mm
    scatterers = white_noise(PROBE, np.random.default_rng(1))
    shadowed = envelope(even_tissue(attenuation), scatterers, PROBE)
    behind = depth_mm > 13
    lost_db = -20 * np.log10(shadowed[behind] / amplitude[behind])
    # There and back: 2 x 3 dB / cm / MHz x 7 MHz x 0.2 cm.
    assert lost_db.mean() == pytest.approx(8.4, abs=0.1)
    before = depth_mm < 10
    np.testing.assert_allclose(shadowed[before], amplitude[before])


def test_compression_is_logarithmic_over_the_stated_range() -> None:
    silence = np.zeros((PROBE.samples, PROBE.lines), dtype=np.complex128)
    receiver = Receiver(range_db=50.0, gain_db=0.0)
    quiet, loud = (
        compress(np.full(silence.shape, level), PROBE, receiver, silence) for level in (0.3, 3.0)
    )
    assert (loud - quiet).mean() == pytest.approx(20.0 / 50.0, abs=1e-6)


def test_noise_of_the_electronics_fills_what_sends_no_echo() -> None:
    noise = white_noise(PROBE, np.random.default_rng(2))
    nothing = np.zeros(noise.shape)
    quiet, poor = (
        compress(nothing, PROBE, Receiver(noise_db=level), noise) for level in (-60.0, -30.0)
    )
    assert quiet[:50].max() < 0.1 < poor[-50:].mean()


@pytest.mark.parametrize("below", [True, False])
def test_echo_appears_where_the_probe_heard_it(below: bool) -> None:
    probe = dataclasses.replace(PROBE, radius_mm=10.0, opening=2.0, samples=200, lines=201)
    fan = Fan(probe, 240, 320, 0.3, (200.0 if below else 30.0, 170.0), below)
    field = np.zeros((200, 201))
    sample, line = 120, 150
    field[sample - 1 : sample + 2, line - 1 : line + 2] = 1.0
    rows, columns = np.nonzero(scan_convert(field, fan) > 0.5)
    depth, angle = probe.depth_mm[sample], probe.angles[line]
    aside = (10.0 + depth) * math.sin(angle)
    ahead = (10.0 + depth) * math.cos(angle) - 10.0
    row = fan.origin[0] + (-ahead if below else ahead) / 0.3
    assert rows.mean() == pytest.approx(row, abs=0.7)
    assert columns.mean() == pytest.approx(170.0 + aside / 0.3, abs=0.7)


def test_volume_of_a_gland_is_that_of_the_solid_it_departs_from() -> None:
    gland = Gland((50.0, 34.0, 42.0), wall_mm=6.0, tilt=0.05)
    # 8 a b c gamma(1 + 1/p)^3 / gamma(1 + 3/p) of a superellipsoid of exponent p.
    p = 2.3
    solid = 50.0 * 34.0 * 42.0 / 1000 * math.gamma(1 + 1 / p) ** 3 / math.gamma(1 + 3 / p)
    assert volume_ml(gland) == pytest.approx(solid, rel=0.01)


def test_masks_of_a_cine_add_up_to_the_volume_of_the_gland() -> None:
    patient = draw_patient(3, PLAIN)
    step_mm = 1.1 * patient.gland.size_mm[2] / 20
    cine = simulate_cine(3, 21, PLAIN)
    areas_mm2 = [frame.gland.sum() * frame.spacing_mm**2 for frame in cine]
    assert sum(areas_mm2) * step_mm / 1000 == pytest.approx(volume_ml(patient.gland), rel=0.03)
    assert [frame.z_mm for frame in cine] == sorted((f.z_mm for f in cine), reverse=True)
    assert areas_mm2[0] == areas_mm2[-1] == 0.0  # beyond base and apex


def test_picture_follows_from_the_seed() -> None:
    first, again, other = (simulate_frame(seed, SMALL) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.gland, again.gland)
    assert not np.array_equal(first.image, other.image)


def test_writing_changes_neither_speckle_nor_truth() -> None:
    seed = next(s for s in range(20) if not draw_patient(s, SMALL).screen.calipers)
    written, plain = simulate_frame(seed, SMALL), simulate_frame(seed, PLAIN)
    np.testing.assert_array_equal(written.gland, plain.gland)
    assert plain.gland.any()
    np.testing.assert_array_equal(written.image[plain.gland], plain.image[plain.gland])
    assert plain.image[~plain.fan].max() == 0 < written.image[~plain.fan].max()


def test_name_on_the_screen_says_that_it_is_nobodys() -> None:
    assert simulate_frame(4, SMALL).name.startswith("SIMULATED^")


def test_parts_lie_inside_the_gland_and_a_lesion_is_darker() -> None:
    config = dataclasses.replace(PLAIN, lesion_share=1.0)
    cines = [simulate_cine(seed, 7, config) for seed in (1, 2, 3)]
    frames = [max(cine, key=lambda frame: frame.lesion.sum()) for cine in cines]
    for frame in frames:
        assert frame.lesion.sum() > 20
        assert not (frame.lesion & ~frame.gland).any()
        assert not (frame.urethra & ~frame.gland).any()
        rest = frame.gland & ~frame.lesion & ~frame.urethra
        assert frame.image[frame.lesion].mean() < frame.image[rest].mean()


def test_share_of_patients_without_a_lesion_is_kept() -> None:
    config = dataclasses.replace(PLAIN, lesion_share=0.0)
    assert all(draw_patient(seed, config).anatomy.lesion is None for seed in range(20))


def test_neighbouring_planes_share_speckle_and_distant_ones_do_not() -> None:
    def likeness(step_mm: float) -> float:
        first, second = simulate_cine(6, 2, PLAIN, step_mm)
        common = first.gland & second.gland
        a, b = (frame.image[common].astype(float) for frame in (first, second))
        return float(np.corrcoef(a, b)[0, 1])

    assert likeness(0.3) > 0.8
    assert likeness(6.0) < 0.45
