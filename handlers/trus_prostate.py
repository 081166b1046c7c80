"""Prostate gland in transrectal ultrasound (TRUS): frames, cine loops and stacks."""

from __future__ import annotations

from handlers.frames import FrameHandler


class TrusProstateHandler(FrameHandler):  # TorchServe wants exactly one class in this file
    """One structure in grey frames; lesions would be another target, and another model."""
