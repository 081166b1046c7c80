"""Simulated transrectal ultrasound of the prostate, with the truth that no patient's picture has.

    frame = simulate_frame(seed=7)              # SimulatedFrame: image, gland, lesion, spacing …
    cine = simulate_cine(seed=7, frames=24)     # the same patient, base to apex

Everything follows from the seed: patient, probe, machine settings, writing on the screen and
speckle are drawn from separate streams, so that asking for no writing changes no other pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from simulation.acoustics import (
    Echo,
    Fan,
    Probe,
    Receiver,
    compress,
    envelope,
    scan_convert,
    white_noise,
)
from simulation.anatomy import Anatomy, Field, Gland, draw_anatomy
from simulation.screen import Screen, draw_screen, paint
from simulation.tissue import tissue
from training.core.config import Setting

__all__ = ["Patient", "SimulatedFrame", "SimulationConfig", "draw_patient", "simulate_cine",
           "simulate_frame"]  # fmt: skip

# Names of the random streams; a new one comes last, or every picture changes.
_STREAMS = ("anatomy", "probe", "screen", "speckle", "plane", "noise")
_ELEVATION_MM = 2.5  # thickness of the sound's slice: planes closer than this share speckle


@dataclass(frozen=True)
class SimulationConfig:
    """What the pictures look like; the defaults resemble the middle of clinical quality."""

    height: Annotated[int, Setting("rows of the screen", minimum=96, maximum=2048)] = 384
    width: Annotated[int, Setting("columns of the screen", minimum=96, maximum=2048)] = 512
    overlays: Annotated[bool, Setting("write names, ruler and calipers on the screen")] = True
    lesion_share: Annotated[
        float, Setting("share of patients with a lesion", minimum=0.0, maximum=1.0)
    ] = 0.4
    noise_db: Annotated[
        float,
        Setting("added to the electronics' noise; 15 is a poor machine", minimum=-30, maximum=30),
    ] = 0.0
    noise_spread_db: Annotated[
        float,
        Setting("more noise, up to so much, drawn for each patient", minimum=0, maximum=60),
    ] = 0.0


@dataclass(frozen=True, eq=False)
class Patient:
    """One simulated patient before the machine, and the machine's settings.

    Attributes:
        seed: What it was drawn from.
        anatomy: The body.
        fan: Probe and screen.
        receiver: The machine's knobs.
        screen: The writing; drawn even where it is not shown.
        line_db: Loss of each line (R, L) by lost contact and gas at the surface.
    """

    seed: int
    anatomy: Anatomy
    fan: Fan
    receiver: Receiver
    screen: Screen
    line_db: Field

    @property
    def gland(self) -> Gland:
        """The prostate's outer shape."""
        return self.anatomy.gland


@dataclass(frozen=True, eq=False)
class SimulatedFrame:
    """A picture and its truth.

    Attributes:
        image: uint8 (H, W), as a machine would store it.
        gland: bool (H, W), the prostate, urethra and lesion included.
        lesion: bool (H, W); all False where the patient has none in this plane.
        urethra: bool (H, W), its lumen.
        fan: bool (H, W), the pixels that sound reaches.
        spacing_mm: Of pixels, both ways.
        z_mm: Of the plane, from the middle of the gland towards the bladder.
        seed: Of the patient.
        name: Written on the screen; of nobody.
    """

    image: npt.NDArray[np.uint8]
    gland: npt.NDArray[np.bool_]
    lesion: npt.NDArray[np.bool_]
    urethra: npt.NDArray[np.bool_]
    fan: npt.NDArray[np.bool_]
    spacing_mm: float
    z_mm: float
    seed: int
    name: str


def simulate_frame(seed: int, config: SimulationConfig | None = None) -> SimulatedFrame:
    """One frame of the patient `seed`, in a plane near the middle of the gland.

    One patient in twenty is seen beyond base or apex, where the mask is empty.
    """
    config = config or SimulationConfig()
    patient = draw_patient(seed, config)
    plane = _stream(seed, "plane")
    half = patient.gland.size_mm[2] / 2
    z = float(plane.uniform(-0.85, 0.85)) * half
    if plane.uniform() < 0.05:
        z = float(plane.choice([-1.0, 1.0]) * plane.uniform(1.05, 1.25)) * half
    speckle = _stream(seed, "speckle")
    return _frame(patient, config, z, white_noise(patient.fan.probe, speckle), speckle)


def simulate_cine(
    seed: int,
    frames: int,
    config: SimulationConfig | None = None,
    step_mm: float | None = None,
    centre_mm: float = 0.0,
) -> list[SimulatedFrame]:
    """Parallel planes of the patient `seed` from above the base to below the apex.

    Args:
        seed: Of the patient.
        frames: How many planes.
        config: How they look.
        step_mm: Between planes; by default 1.1 times the gland's length is covered.
        centre_mm: Of the planes along the gland, from its middle towards the base.
    """
    config = config or SimulationConfig()
    patient = draw_patient(seed, config)
    if step_mm is None:
        step_mm = 1.1 * patient.gland.size_mm[2] / max(frames - 1, 1)
    # Neighbouring planes share scatterers as far as their slices of sound overlap.
    kept = float(np.exp(-((step_mm / _ELEVATION_MM) ** 2)))
    speckle = _stream(seed, "speckle")
    scatterers = white_noise(patient.fan.probe, speckle)
    cine = []
    for number in range(frames):
        z = centre_mm + ((frames - 1) / 2 - number) * step_mm
        cine.append(_frame(patient, config, z, scatterers, speckle, number))
        fresh = white_noise(patient.fan.probe, speckle)
        scatterers = kept * scatterers + np.sqrt(1 - kept**2) * fresh
    return cine


def draw_patient(seed: int, config: SimulationConfig) -> Patient:
    """Body, probe and settings of the patient `seed`."""
    anatomy = draw_anatomy(_stream(seed, "anatomy"), config.lesion_share)
    more_db = float(_stream(seed, "noise").uniform(0.0, 1.0)) * config.noise_spread_db
    generator = _stream(seed, "probe")
    fan = _draw_fan(anatomy.gland, config, generator)
    receiver = Receiver(
        range_db=float(generator.uniform(45, 65)),
        gain_db=float(generator.normal(-1.5, 4.0)),
        noise_db=float(generator.uniform(-52, -36)) + config.noise_db + more_db,
    )
    screen = draw_screen(_stream(seed, "screen"), calipers_share=0.25)
    return Patient(seed, anatomy, fan, receiver, screen, _lost_contact(fan.probe, generator))


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS.index(name)])


def _draw_fan(gland: Gland, config: SimulationConfig, generator: np.random.Generator) -> Fan:
    """A probe that sees the whole gland, and its place on the screen."""
    width, height, _ = gland.size_mm
    reach = float((gland.wall_mm + height) * generator.uniform(1.18, 1.55))
    radius = float(generator.uniform(9.0, 14.0))
    # The outermost lines pass the widest place of the gland with some room.
    widest = abs(gland.shift_mm) + 0.56 * width
    needed = 2 * np.arctan2(widest, radius + gland.wall_mm + 0.8 * gland.back * height)
    opening = float(np.clip(needed * generator.uniform(1.05, 1.3), 1.7, 2.9))
    # A fan of more than half a turn's width bends below the surface at its sides.
    tall = reach + radius * (1 - np.cos(opening / 2))
    wide = 2 * (radius + reach) * np.sin(min(opening, np.pi) / 2)
    spacing = max(tall / config.height, wide / config.width) / generator.uniform(0.8, 0.93)
    probe = Probe(
        radius, opening, reach, float(generator.uniform(6.0, 9.5)),
        focus_mm=float(generator.uniform(0.35, 0.8) * reach),
        f_number=float(generator.uniform(1.8, 3.2)),
        samples=round(1.25 * reach / spacing),
        lines=round(1.1 * opening * (radius + 0.6 * reach) / spacing),
    )  # fmt: skip
    below = bool(generator.uniform() < 0.8)
    free = config.height - tall / spacing
    top = generator.uniform(0.2, 0.8) * free + reach / spacing
    row = top if below else config.height - top
    column = config.width / 2 + generator.uniform(-0.1, 0.1) * (config.width - wide / spacing)
    return Fan(probe, config.height, config.width, spacing, (float(row), float(column)), below)


def _lost_contact(probe: Probe, generator: np.random.Generator) -> Field:
    """Loss in dB (R, L): weak outer lines, and shadows of gas that begin at the surface."""
    place = np.linspace(-1, 1, probe.lines)
    loss = generator.uniform(0, 14) * np.maximum(np.abs(place) - 0.75, 0) / 0.25
    for _ in range(generator.integers(0, 3)):
        centre, width = generator.uniform(-0.95, 0.95), generator.uniform(0.01, 0.05)
        loss += generator.uniform(3, 15) * np.exp(-(((place - centre) / width) ** 2))
    ripple = ndimage.gaussian_filter1d(generator.standard_normal(probe.lines), 6.0, mode="wrap")
    loss += 2.0 * ripple
    return np.broadcast_to(loss, (probe.samples, probe.lines))


def _frame(
    patient: Patient,
    config: SimulationConfig,
    z_mm: float,
    scatterers: Echo,
    generator: np.random.Generator,
    number: int = 0,
) -> SimulatedFrame:
    fan, probe = patient.fan, patient.fan.probe
    x, y, depth = probe.grid()
    seen = tissue(patient.anatomy, x, y, z_mm, depth)
    amplitude = envelope(seen, scatterers, probe, patient.line_db)
    # Reverberations of the probe's surface fade within some millimetres.
    amplitude += 4.0 * np.exp(-depth / 0.8)
    brightness = compress(amplitude, probe, patient.receiver, white_noise(probe, generator))
    image = np.rint(255 * scan_convert(brightness, fan)).astype(np.uint8)
    gland, lesion, urethra = (
        scan_convert(part.astype(np.float64), fan, order=0) > 0.5
        for part in (seen.gland, seen.lesion, seen.urethra)
    )
    if config.overlays:
        image = paint(image, fan, patient.screen, gland, number)
    return SimulatedFrame(
        image, gland, lesion, urethra, fan.mask(), fan.spacing_mm, z_mm, patient.seed,
        patient.screen.name,
    )  # fmt: skip
