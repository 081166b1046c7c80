"""Hippocampus in 3D MR: its anterior and its posterior part."""

from __future__ import annotations

from handlers.volumes import VolumeHandler


class HippocampusHandler(VolumeHandler):  # TorchServe wants exactly one class in this file
    """Two labels on the grid of the volume; another organ is another room with such a file."""
