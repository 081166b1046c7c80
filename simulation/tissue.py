"""What the sound meets in one plane of a simulated body: echo, attenuation, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulation.anatomy import ECHO_DB, Anatomy, Ellipsoid, Field

__all__ = ["SOFT_TISSUE", "Tissue", "tissue"]

SOFT_TISSUE = 0.6  # dB / cm / MHz one way, what machines make up for
_WATER, _BONE = 0.0, 12.0
_WALL_MM = (1.2, 3.4, 4.4)  # outer ends of mucosa, muscle and serosa of the rectum
_CAPSULE_MM = 0.45


@dataclass(frozen=True, eq=False)
class Tissue:
    """What the sound meets in one plane; all arrays of one shape.

    Attributes:
        echo_db: Of the scatterers, relative to the peripheral zone.
        attenuation: dB / cm / MHz, one way.
        capsule: Reflection of the gland's surface: 1 where it faces the sound, 0 away from it.
        gland: Inside the prostate.
        lesion: Inside the lesion.
        urethra: Inside the urethra's lumen.
    """

    echo_db: Field
    attenuation: Field
    capsule: Field
    gland: npt.NDArray[np.bool_]
    lesion: npt.NDArray[np.bool_]
    urethra: npt.NDArray[np.bool_]


def tissue(anatomy: Anatomy, x: Field, y: Field, z: float, depth: Field) -> Tissue:
    """What lies at x, y in the plane z; `depth` is the distance from the probe's surface."""
    gland_level = anatomy.gland.level(x, y, z)
    gland = gland_level < 1
    echo = np.full(x.shape, ECHO_DB["surrounding"])
    attenuation = np.full(x.shape, SOFT_TISSUE)
    echo += _pelvis(anatomy, x, y, z)
    _put(echo, anatomy.vessels, x, y, z)
    bladder = anatomy.bladder.level(x, y, z) < 1
    echo[bladder], attenuation[bladder] = anatomy.bladder.echo_db, _WATER
    bone = y > anatomy.bone_mm + 0.03 * (x - anatomy.gland.shift_mm) ** 2
    echo[bone], attenuation[bone] = ECHO_DB["bone"], _BONE
    start = 0.0
    for end, name in zip(_WALL_MM, ("mucosa", "wall muscle", "serosa"), strict=True):
        echo[(depth >= start) & (depth < end)] = ECHO_DB[name]
        start = end
    capsule = _capsule(gland_level, x, y)
    lesion, urethra = _fill(anatomy, echo, gland_level, (x, y, z))
    # Fat and muscle are streaky, the gland is even.
    echo += ECHO_DB["capsule"] * capsule + np.where(gland, 1.1, 2.6) * _texture(anatomy, x, y, z)
    for stone in anatomy.calcifications:
        hard = (stone.level(x, y, z) < 1) & gland
        echo[hard], attenuation[hard] = stone.echo_db, _BONE
    return Tissue(echo, attenuation, capsule, gland, lesion, urethra)


def _pelvis(anatomy: Anatomy, x: Field, y: Field, z: float) -> Field:
    """What the muscles at both sides change of the echo, dB: two curved layers, the outer darker.

    The surfaces lean outwards towards the front and run closer together at the apex.
    """
    width, height, length = anatomy.gland.size_mm
    x0, y0 = anatomy.gland.centre_mm
    beside = np.abs(x - x0) - 0.004 * (y - y0) ** 2 - 0.12 * (y - y0)
    beside -= (0.56 + 0.12 * z / length) * width
    inner, outer = (1 / (1 + np.exp(-(beside - at) / 1.2)) for at in (1.5, 11.0))
    front = 1 / (1 + np.exp(-(y - y0 - 0.75 * height) / 3.0))
    return np.asarray(ECHO_DB["muscle"] * (inner + outer) - 2.0 * front)


def _capsule(level: Field, x: Field, y: Field) -> Field:
    """How strongly the surface reflects: it must be near, and face the sound.

    The first axis of the arrays runs along the sound, the second across it.
    """
    slopes = [
        np.gradient(level, axis=axis)
        / np.hypot(np.gradient(x, axis=axis), np.gradient(y, axis=axis))
        for axis in (0, 1)
    ]  # per mm along and across
    steepness = np.maximum(np.hypot(*slopes), 1e-3)
    distance_mm = (level - 1) / steepness
    facing = (slopes[0] / steepness) ** 2  # cosine squared of the angle of incidence
    return np.asarray(np.exp(-((distance_mm / _CAPSULE_MM) ** 2)) * (0.25 + 0.75 * facing))


def _fill(
    anatomy: Anatomy, echo: Field, level: Field, at: tuple[Field, Field, float]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Draw the inside of the gland into `echo`; return its lesion and its urethra."""
    gland = level < 1
    zone_level, zone_echo = anatomy.transition
    inner = np.zeros_like(echo)
    inner[level < zone_level] = zone_echo
    _put(inner, anatomy.nodules, *at)
    lesion = np.zeros_like(gland)
    if anatomy.lesion is not None:
        lesion = (anatomy.lesion.level(*at) < 1) & gland
        inner[lesion] = anatomy.lesion.echo_db
    x0, y0 = anatomy.gland.centre_mm
    x, y, z = at
    # The urethra runs from the front at the base towards the back at the apex.
    radius = np.hypot(x - x0, 1.25 * (y - y0 - 0.12 * z - 0.08 * anatomy.gland.size_mm[1]))
    urethra = (radius < anatomy.urethra_mm) & gland
    inner[radius < anatomy.urethra_mm + 1.0] = ECHO_DB["urethra wall"]
    inner[urethra] = ECHO_DB["urethra"]
    echo[gland] = inner[gland]
    return lesion & ~urethra, urethra


def _put(echo: Field, bodies: Sequence[Ellipsoid], x: Field, y: Field, z: float) -> None:
    for body in bodies:
        echo[body.level(x, y, z) < 1] = body.echo_db


def _texture(anatomy: Anatomy, x: Field, y: Field, z: float) -> Field:
    """Smooth variation with a standard deviation of about 1."""
    total = np.zeros_like(x)
    for a, b, c, phase in anatomy.texture:
        total += np.cos(a * x + b * y + c * z + phase)
    return total * np.sqrt(2 / max(len(anatomy.texture), 1))
