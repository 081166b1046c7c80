"""From tissue to a B-mode picture: scatterers, beam, attenuation, compression, scan conversion.

The model is linear and works on lines of sound (R samples along, L lines across). Scatterers are
dense, with random phase, so the echo before the beam is complex white noise weighted by the
tissue; the beam is a Gaussian along and across, wider away from the focus (Bamber and Dickinson,
Phys. Med. Biol. 25:463, 1980). Its envelope is fully developed speckle, Rayleigh distributed.
Attenuation is summed along each line, so that bodies cast shadows and fluids brighten what lies
behind them; the receiver makes up for that of ordinary soft tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from simulation.anatomy import Field
from simulation.tissue import SOFT_TISSUE, Tissue

__all__ = ["Fan", "Probe", "Receiver", "compress", "envelope", "scan_convert", "white_noise"]

Echo = npt.NDArray[np.complex128]

_SOUND_MM_PER_US = 1.54  # soft tissue


@dataclass(frozen=True)
class Probe:
    """A convex array and its beam.

    Attributes:
        radius_mm: Of the curved surface.
        opening: Angle between the outermost lines, radians.
        reach_mm: Deepest sample below the surface.
        frequency_mhz: Centre of the pulse.
        focus_mm: Depth where the beam is narrowest.
        f_number: Focal depth over aperture; the beam's width there in wavelengths.
        samples: Along a line.
        lines: Across.
    """

    radius_mm: float
    opening: float
    reach_mm: float
    frequency_mhz: float
    focus_mm: float
    f_number: float
    samples: int
    lines: int

    @property
    def wavelength_mm(self) -> float:
        """Of the pulse in soft tissue."""
        return _SOUND_MM_PER_US / self.frequency_mhz

    @property
    def depth_mm(self) -> Field:
        """Of each sample below the surface, (R,)."""
        return np.linspace(0.0, self.reach_mm, self.samples)

    @property
    def angles(self) -> Field:
        """Of each line from the axis, radians, (L,)."""
        return np.linspace(-self.opening / 2, self.opening / 2, self.lines)

    def grid(self) -> tuple[Field, Field, Field]:
        """x, y and depth (R, L) in mm of every sample; y is 0 on the axis at the surface."""
        depth, angle = np.meshgrid(self.depth_mm, self.angles, indexing="ij")
        radius = self.radius_mm + depth
        return radius * np.sin(angle), radius * np.cos(angle) - self.radius_mm, depth

    @property
    def pulse_mm(self) -> float:
        """Standard deviation of the pulse along the line: about two periods."""
        return 0.45 * self.wavelength_mm

    @property
    def beam_mm(self) -> Field:
        """Standard deviation of the beam across the lines at each sample, (R,)."""
        narrowest = 0.5 * self.f_number * self.wavelength_mm
        rayleigh_mm = 4.0 * self.f_number**2 * self.wavelength_mm  # depth of field
        return narrowest * np.sqrt(1 + ((self.depth_mm - self.focus_mm) / rayleigh_mm) ** 2)


@dataclass(frozen=True)
class Receiver:
    """What the machine's knobs are set to.

    Attributes:
        range_db: Between black and white.
        gain_db: Added to everything; 0 puts the peripheral zone at half of white.
        noise_db: Of the electronics at the surface, relative to the peripheral zone; it grows
            with depth as the amplification does.
    """

    range_db: float = 55.0
    gain_db: float = 0.0
    noise_db: float = -45.0


def white_noise(probe: Probe, generator: np.random.Generator) -> Echo:
    """Scatterers (R, L) of unit mean power and random phase."""
    parts = generator.standard_normal((2, probe.samples, probe.lines))
    return np.asarray((parts[0] + 1j * parts[1]) / np.sqrt(2))


def envelope(tissue: Tissue, scatterers: Echo, probe: Probe, line_db: Field | float = 0.0) -> Field:
    """Amplitude (R, L) of the echo; the mean power is 1 where the tissue says 0 dB.

    Args:
        tissue: On the probe's grid.
        scatterers: White noise of unit power on that grid.
        probe: Whose beam it is.
        line_db: Further loss of each sample, such as lost contact of a line.
    """
    weighted = scatterers * 10 ** (tissue.echo_db / 20)
    along = 2 * probe.frequency_mhz * probe.reach_mm / 10 / (probe.samples - 1)
    loss_db = np.cumsum((tissue.attenuation - SOFT_TISSUE) * along, axis=0)
    blurred = _across(_along(weighted, probe), probe)
    return np.abs(blurred) * 10 ** (-(loss_db + line_db) / 20)


def _along(echo: Echo, probe: Probe) -> Echo:
    """Convolve with the pulse; white noise keeps its power."""
    sigma = max(probe.pulse_mm / (probe.reach_mm / (probe.samples - 1)), 0.3)
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= np.sqrt((kernel**2).sum())
    blurred = np.empty_like(echo)
    blurred.real = ndimage.convolve1d(echo.real, kernel, axis=0, mode="reflect")
    blurred.imag = ndimage.convolve1d(echo.imag, kernel, axis=0, mode="reflect")
    return blurred


def _across(echo: Echo, probe: Probe) -> Echo:
    """Convolve each depth with the beam's width there; white noise keeps its power."""
    spacing_mm = (probe.radius_mm + probe.depth_mm) * probe.opening / (probe.lines - 1)
    sigma = probe.beam_mm / spacing_mm  # lines
    margin = int(np.ceil(3 * sigma.max()))  # what leaves on one side must not enter on the other
    padded = np.pad(echo, ((0, 0), (margin, margin)), mode="reflect")
    frequency = np.fft.fftfreq(padded.shape[1])
    transfer = np.exp(-2 * (np.pi * sigma[:, np.newaxis] * frequency) ** 2)
    transfer /= np.sqrt((transfer**2).mean(axis=1, keepdims=True))
    blurred = fft.ifft(fft.fft(padded, axis=1) * transfer, axis=1)
    return np.asarray(blurred[:, margin : margin + echo.shape[1]])


def compress(amplitude: Field, probe: Probe, receiver: Receiver, noise: Echo) -> Field:
    """Amplitude (R, L) -> brightness in [0, 1], logarithmic, with the electronics' noise."""
    made_up_db = 2 * probe.frequency_mhz * SOFT_TISSUE * probe.depth_mm / 10
    # Amplification is limited: beyond it the echo fades instead of the noise growing.
    level_db = receiver.noise_db + np.minimum(made_up_db, 32.0)
    floor = np.abs(noise) * 10 ** (level_db / 20)[:, np.newaxis]
    loudness_db = 20 * np.log10(np.hypot(amplitude, floor) + 1e-6) + receiver.gain_db
    return np.asarray(np.clip(0.5 + loudness_db / receiver.range_db, 0.0, 1.0))


@dataclass(frozen=True)
class Fan:
    """Where the lines of sound lie on the screen.

    Attributes:
        probe: Whose lines they are.
        height: Of the screen, pixels.
        width: Of the screen, pixels.
        spacing_mm: Of pixels, both ways.
        origin: Row and column of the middle of the probe's surface.
        probe_below: Whether the probe is at the lower edge, as transrectal pictures are shown.
    """

    probe: Probe
    height: int
    width: int
    spacing_mm: float
    origin: tuple[float, float]
    probe_below: bool = True

    def polar(self) -> tuple[Field, Field]:
        """Sample and line, as fractional indices, of every pixel (H, W)."""
        rows, columns = np.mgrid[: self.height, : self.width].astype(np.float64)
        up = (self.origin[0] - rows) if self.probe_below else (rows - self.origin[0])
        y = up * self.spacing_mm + self.probe.radius_mm
        x = (columns - self.origin[1]) * self.spacing_mm
        depth = np.hypot(x, y) - self.probe.radius_mm
        angle = np.arctan2(x, y)
        sample = depth / self.probe.reach_mm * (self.probe.samples - 1)
        line = (angle / self.probe.opening + 0.5) * (self.probe.lines - 1)
        return sample, line

    def pixel(self, x_mm: float, y_mm: float) -> tuple[float, float]:
        """Row and column of a place in the probe's plane."""
        up = y_mm / self.spacing_mm
        row = self.origin[0] - up if self.probe_below else self.origin[0] + up
        return row, self.origin[1] + x_mm / self.spacing_mm

    def mask(self) -> npt.NDArray[np.bool_]:
        """The pixels (H, W) that sound reaches."""
        sample, line = self.polar()
        inside = (sample >= 0) & (sample <= self.probe.samples - 1)
        return np.asarray(inside & (line >= 0) & (line <= self.probe.lines - 1))


def scan_convert(field: Field, fan: Fan, order: int = 1) -> Field:
    """A field (R, L) on the lines -> picture (H, W); 0 where there is no sound.

    `order` 1 interpolates linearly, 0 takes the nearest sample, as labels need it.
    """
    sample, line = fan.polar()
    picture = ndimage.map_coordinates(field, [sample, line], order=order, mode="nearest")
    return np.asarray(np.where(fan.mask(), picture, 0.0))
