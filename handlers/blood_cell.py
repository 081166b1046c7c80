"""Blood cells: kind of the cell in the middle of a frame of a stained smear."""

from __future__ import annotations

from handlers.classification import ClassificationHandler


class BloodCellHandler(ClassificationHandler):  # TorchServe wants exactly one class in this file
    """Eight kinds of cell, told apart on a colour plane of 128 x 128 pixels."""
