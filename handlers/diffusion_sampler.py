"""Synthetic brain slices from noise, served by TorchServe."""

from __future__ import annotations

from handlers.generation import GenerationHandler


class DiffusionSamplerHandler(GenerationHandler):
    """Classes, process and limits come from `model-config.yaml`."""
