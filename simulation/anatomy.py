"""A prostate and what lies around it, drawn at random: shapes in 3D.

Coordinates are millimetres in the frame of the probe: x to the right, y away from the probe
(towards the front of the body), z along the probe (towards the bladder), 0 in the middle of the
gland. Nothing here is measured on patients: sizes and ratios lie in the ranges that anatomy books
state, and the shape is a superellipsoid with the gland's known departures from it (flat or
notched towards the rectum, narrower in front and at the apex, never quite symmetric).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ECHO_DB", "Anatomy", "Ellipsoid", "Field", "Gland", "draw_anatomy", "volume_ml"]

Field = npt.NDArray[np.float64]

_ROUNDNESS = 2.3  # exponent of the superellipsoid: 2 is an ellipsoid, more is squarer
_NOTCH_WIDTH = 0.35  # of half the gland's width
_APEX_TAPER = 0.12  # the apex is narrower than the base by this share, each way
# Echo in dB relative to the peripheral zone.
ECHO_DB = {
    "surrounding": 3.0, "muscle": -7.0, "bladder": -38.0, "vessel": -13.0, "bone": 16.0,
    "mucosa": 2.0, "wall muscle": -12.0, "serosa": 6.0, "capsule": 7.0,
    "urethra": -15.0, "urethra wall": 3.0, "calcification": 15.0,
}  # fmt: skip


@dataclass(frozen=True)
class Gland:
    """The outer shape of a prostate.

    Attributes:
        size_mm: Largest extent along x, y and z, before the shape departs from a superellipsoid.
        wall_mm: From the probe to the gland's back, in the midline.
        shift_mm: Of the midline from the probe's axis.
        tilt: Rotation in the plane, radians.
        back: Share of the height that lies behind the widest place.
        notch: How far the back is pressed in at the midline, as a share of that part.
        taper: How much narrower the front is than the middle, as a share.
        waves: Order, amplitude, phase and turn along z of bumps around the outline.
    """

    size_mm: tuple[float, float, float]
    wall_mm: float
    shift_mm: float = 0.0
    tilt: float = 0.0
    back: float = 0.5
    notch: float = 0.0
    taper: float = 0.0
    waves: tuple[tuple[int, float, float, float], ...] = ()

    @property
    def centre_mm(self) -> tuple[float, float]:
        """Place (x, y) of the point around which the outline runs."""
        return self.shift_mm, self.wall_mm + self.back * self.size_mm[1]

    def level(self, x: Field, y: Field, z: float) -> Field:
        """0 in the centre, 1 on the capsule, more outside."""
        u, v, w = self._relative(x, y, z)
        outline = np.ones_like(u)
        angle = np.arctan2(v, u)
        for order, amplitude, phase, turn in self.waves:
            outline += amplitude * np.cos(order * angle + phase + turn * w)
        p = _ROUNDNESS
        in_plane = (np.abs(u) ** p + np.abs(v) ** p) / outline**p
        return np.asarray((in_plane + abs(w) ** p) ** (1 / p))

    def _relative(self, x: Field, y: Field, z: float) -> tuple[Field, Field, float]:
        """Coordinates in half sizes, bent so that the outline becomes a superellipse."""
        width, height, length = self.size_mm
        x0, y0 = self.centre_mm
        right = np.cos(self.tilt) * (x - x0) + np.sin(self.tilt) * (y - y0)
        front = np.cos(self.tilt) * (y - y0) - np.sin(self.tilt) * (x - x0)
        w = 2 * z / length
        v = np.where(front > 0, front / ((1 - self.back) * height), front / (self.back * height))
        narrowing = (1 + _APEX_TAPER * np.clip(w, -1, 1)) * (1 - self.taper * np.clip(v, -1, 1))
        u = right / (width / 2 * narrowing)
        pressed = 1 + self.notch * np.exp(-((u / _NOTCH_WIDTH) ** 2))
        return u, np.where(v < 0, v * pressed, v), w


@dataclass(frozen=True)
class Ellipsoid:
    """A body inside or beside the gland: centre and half axes in mm, and its echo."""

    centre_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]
    echo_db: float

    def level(self, x: Field, y: Field, z: float) -> Field:
        """0 in the centre, 1 on the surface, more outside."""
        (x0, y0, z0), (a, b, c) = self.centre_mm, self.half_mm
        return np.asarray(np.sqrt(((x - x0) / a) ** 2 + ((y - y0) / b) ** 2 + ((z - z0) / c) ** 2))


@dataclass(frozen=True)
class Anatomy:
    """One simulated patient.

    Attributes:
        gland: The prostate's outer shape.
        transition: Level of the gland inside which the transition zone lies, and its echo.
        urethra_mm: Radius of the lumen.
        lesion: A hypoechoic lesion inside the gland; None in most patients.
        nodules: Of the transition zone.
        calcifications: Small bodies that cast a shadow.
        vessels: Beside the back of the gland.
        bladder: Above the base; echo-free.
        bone_mm: y of the pubic bone; infinite where the probe does not reach it.
        texture: Plane waves (x, y, z per mm, phase) whose sum varies the echo by some dB.
    """

    gland: Gland
    transition: tuple[float, float]
    urethra_mm: float
    lesion: Ellipsoid | None
    nodules: tuple[Ellipsoid, ...]
    calcifications: tuple[Ellipsoid, ...]
    vessels: tuple[Ellipsoid, ...]
    bladder: Ellipsoid
    bone_mm: float
    texture: tuple[tuple[float, float, float, float], ...]


def draw_anatomy(generator: np.random.Generator, lesion_share: float) -> Anatomy:
    """A patient at random; `lesion_share` of them have a lesion."""
    gland = _draw_gland(generator)
    lesion = _draw_lesion(gland, generator)
    has_lesion = generator.uniform() < lesion_share
    zone = float(generator.uniform(0.5, 0.8))
    length = gland.size_mm[2]
    x0, _ = gland.centre_mm
    front = gland.wall_mm + gland.size_mm[1]
    nodules = [
        Ellipsoid(_inside(gland, zone - 0.15, generator), _half(2.0, 6.0, generator),
                  float(generator.uniform(-5, 3)))
        for _ in range(generator.integers(0, 5))
    ]  # fmt: skip
    stones = [
        Ellipsoid(_inside(gland, 0.6, generator), _half(0.4, 1.2, generator),
                  ECHO_DB["calcification"])
        for _ in range(generator.integers(0, 4))
    ]  # fmt: skip
    bladder = Ellipsoid(
        (x0, front + 4.0, 0.5 * length + 14.0),
        (float(generator.uniform(20, 32)), 14.0, 16.0), ECHO_DB["bladder"],
    )  # fmt: skip
    bone = front + generator.uniform(6, 14) if generator.uniform() < 0.35 else np.inf
    waves = np.column_stack(
        [generator.normal(0.0, 0.55, (14, 3)), generator.uniform(0, 2 * np.pi, 14)]
    )
    return Anatomy(
        gland, (zone, float(generator.uniform(-6, 0))), float(generator.uniform(1.0, 2.6)),
        lesion if has_lesion else None, tuple(nodules), tuple(stones),
        _draw_vessels(gland, generator), bladder, float(bone),
        tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in waves),
    )  # fmt: skip


def _draw_gland(generator: np.random.Generator) -> Gland:
    """Volumes of 18 to 90 ml, most of them small; wider than long, longer than high."""
    volume = float(np.exp(generator.uniform(np.log(18.0), np.log(90.0))))
    ratios = np.array(
        [generator.uniform(1.2, 1.45), generator.uniform(0.8, 1.0), generator.uniform(0.9, 1.15)]
    )
    # ml = pi / 6 * product of the three diameters in cm, the formula of clinical reports.
    scale = 10 * (volume / (np.pi / 6 * ratios.prod())) ** (1 / 3)
    width, height, length = (ratios * scale).tolist()
    waves = tuple(
        (order, float(generator.normal(0.0, 0.045 / order)),
         float(generator.uniform(0, 2 * np.pi)), float(generator.normal(0.0, 0.8)))
        for order in (1, 2, 3, 4, 5)
    )  # fmt: skip
    return Gland(
        (width, height, length),
        wall_mm=float(generator.uniform(4.8, 8.5)),
        shift_mm=float(generator.normal(0.0, 2.5)),
        tilt=float(generator.normal(0.0, 0.06)),
        back=float(generator.uniform(0.36, 0.5)),
        notch=float(generator.uniform(0.0, 0.22)),
        taper=float(generator.uniform(0.02, 0.2)),
        waves=waves,
    )


def _draw_lesion(gland: Gland, generator: np.random.Generator) -> Ellipsoid:
    """Two of three lie in the peripheral zone: low and to one side."""
    width, height, length = gland.size_mm
    x0, y0 = gland.centre_mm
    half = _half(2.5, 0.14 * width, generator)
    if generator.uniform() < 0.67:
        side = generator.choice([-1.0, 1.0]) * generator.uniform(0.15, 0.3)
        at = (x0 + side * width, y0 - generator.uniform(0.4, 0.55) * gland.back * height)
    else:
        front = generator.uniform(0.1, 0.45) * (1 - gland.back) * height
        at = (x0 + generator.uniform(-0.18, 0.18) * width, y0 + front)
    z = float(generator.uniform(-0.2, 0.2)) * length
    return Ellipsoid((float(at[0]), float(at[1]), z), half, float(generator.uniform(-10, -5)))


def _draw_vessels(gland: Gland, generator: np.random.Generator) -> tuple[Ellipsoid, ...]:
    """The bundles at the two corners of the back, where the machine shows them."""
    width, height, length = gland.size_mm
    x0, y0 = gland.centre_mm
    vessels = []
    for side in (-0.44, 0.44):
        a, b = generator.uniform(0.8, 2.0, 2).tolist()
        if generator.uniform() < 0.6:
            at = (x0 + side * width, y0 - 0.5 * gland.back * height, 0.0)
            vessels.append(Ellipsoid(at, (a, b, length), ECHO_DB["vessel"]))
    return tuple(vessels)


def _half(low: float, high: float, generator: np.random.Generator) -> tuple[float, float, float]:
    a, b, c = generator.uniform(low, max(high, low + 0.1), 3).tolist()
    return a, b, c


def _inside(
    gland: Gland, level: float, generator: np.random.Generator
) -> tuple[float, float, float]:
    """A place at about this level of the gland."""
    angle, z = generator.uniform(0, 2 * np.pi), generator.uniform(-0.3, 0.3)
    x0, y0 = gland.centre_mm
    return (
        float(x0 + level * np.cos(angle) * gland.size_mm[0] / 2),
        float(y0 + level * np.sin(angle) * gland.size_mm[1] * 0.45),
        float(z * gland.size_mm[2]),
    )


def volume_ml(gland: Gland, step_mm: float = 0.5) -> float:
    """The gland's volume, by counting points of a grid."""
    width, height, length = gland.size_mm
    x0, y0 = gland.centre_mm
    reach = 0.8 * max(width, height)
    x, y = np.meshgrid(
        np.arange(x0 - reach, x0 + reach, step_mm), np.arange(y0 - reach, y0 + reach, step_mm)
    )
    slices = np.arange(-0.5 * length + step_mm / 2, 0.5 * length, step_mm)
    inside = sum(int((gland.level(x, y, float(z)) < 1).sum()) for z in slices)
    return inside * step_mm**3 / 1000
