"""Training and serving see the same pixels of one file."""

from __future__ import annotations

import importlib
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from handlers.classification import ClassificationHandler
from medserve.inference.fit import fit_colour, fit_lanczos
from medserve.spec import ModelSpec, Task
from tests.tiny_colour_room import make_colour_checkout, tinted
from training.classification.data import decoded

CLASSIFIERS = [name for name in models.names() if models.spec(name).task is Task.CLASSIFICATION]


def assert_same_pixels(handler: ClassificationHandler, spec: ModelSpec, file: Path) -> None:
    """Compare what training reads from the file with what the handler makes of it."""
    [(_, trained)] = decoded([file], spec, skipped=[])
    handler.spec = spec
    served = handler.to_network(handler.decode(file.read_bytes()))
    assert served.shape == (spec.input.channels, *spec.input.size)
    np.testing.assert_array_equal(trained, served)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_room_is_trained_on_the_pixels_that_it_is_served(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"handlers.{name}")
    [handler] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    noise = np.random.default_rng(seed=0).integers(0, 256, (301, 207, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")  # of no network's size: it is resampled
    (tmp_path / "noise.png").write_bytes(buffer.getvalue())
    assert_same_pixels(handler(), models.spec(name), tmp_path / "noise.png")


def test_a_colour_room_is_trained_on_the_pixels_that_it_is_served(tmp_path: Path) -> None:
    checkout = make_colour_checkout(tmp_path / "checkout")
    source = importlib.util.spec_from_file_location(
        "tiny_colour_handler", checkout / "handlers/tiny_colour.py"
    )
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    spec = ModelSpec.from_file(checkout / "models/tiny_colour/model-config.yaml")
    file = tmp_path / "tinted.png"
    file.write_bytes(tinted(1, height=301, width=207))
    handler: ClassificationHandler = module.TinyColourHandler()
    assert_same_pixels(handler, spec, file)
    image = handler.decode(file.read_bytes())
    assert not np.array_equal(fit_colour(image, (32, 32)), fit_lanczos(image, (32, 32)))
