"""Measure what the training data of a model of frames are like, for `frame.seen` of its file.

    python -m training.frames.seen --data-dir data/trus --model trus_prostate

prints the section as YAML. Serving judges with the same functions on the same prepared frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import models
from annotation.manifest import MANIFEST, read_manifest
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec.seen import FrameSeenSpec
from training.core.seen import measure_images, measured_range, print_section
from training.frames.data import LoadedFrame, find_frames, load_frames

__all__ = ["main", "measure_seen"]


def measure_seen(
    frames: Sequence[LoadedFrame], label: str, spacings_mm: Mapping[str, tuple[float, float]]
) -> FrameSeenSpec:
    """Return the ranges of size, intensities, texture, layout and mask areas over all frames.

    Args:
        frames: As the network sees them, with their masks.
        label: The name of the structure.
        spacings_mm: Of the frames' rows and columns, by name. Without that of every frame no size
            is judged.
    """
    inner = [each.inverse.inner.slices for each in frames]
    shares = np.array([each.mask[box].mean() for each, box in zip(frames, inner, strict=True)])
    sizes = np.array(
        [
            np.multiply(each.inverse.crop.shape, spacings_mm[each.case.name])
            for each in frames
            if each.case.name in spacings_mm
        ]
    )
    is_known = len(sizes) == len(frames)
    return FrameSeenSpec(
        size_mm=tuple(measured_range(axis, 1) for axis in sizes.T) if is_known else (),
        **measure_images(
            each.plane[box].astype(np.float32) for each, box in zip(frames, inner, strict=True)
        ),
        label_share={label: measured_range(shares[shares > 0], 3)},  # an empty mask is told apart
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True, help="frames and their masks")
    parser.add_argument("--model", default="trus_prostate", help="whose preparation counts")
    parser.add_argument("--variant", default="", help="of that model")
    given = parser.parse_args(arguments)
    spec = models.spec(given.model, given.variant)
    has_manifest = (given.data_dir / MANIFEST).is_file()
    entries = read_manifest(given.data_dir) if has_manifest else ()
    stated = {Path(each.name).stem: each.spacing_mm for each in entries}
    spacings_mm = {name: spacing for name, spacing in stated.items() if spacing is not None}
    frames = load_frames(find_frames(given.data_dir), FramePipeline(spec))
    print_section(measure_seen(frames, spec.labels[1], spacings_mm))


if __name__ == "__main__":
    main()
