"""Hippocampus in 3D MR: its anterior and its posterior part."""

from __future__ import annotations

from handlers.segmentation import SegmentationHandler


class HippocampusHandler(SegmentationHandler):  # TorchServe wants exactly one class in this file
    """Two labels on the grid of the volume; another organ is another room with such a file."""
