"""MedNIST: kind of radiograph, CT or MR slice."""

from __future__ import annotations

from handlers.classification import ClassificationHandler


class MednistHandler(ClassificationHandler):  # TorchServe wants exactly one class in this file
    """Six kinds of image, told apart on a grey plane of 64 x 64 pixels."""
