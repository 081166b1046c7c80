"""The one piece of work that every contender serves: the handler's own five verbs on a batch."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.classification import ClassificationHandler
from medserve.spec import ModelSpec

__all__ = ["Work", "decode_and_fit", "load_handler", "load_work"]

Work = Callable[[Sequence[bytes]], list[bytes]]  # image files -> JSON answers, in order


def load_handler(archive_dir: Path) -> ClassificationHandler:
    """The handler of an unpacked archive, initialised and proven as a worker does it.

    MEDSERVE_ENGINE and MEDSERVE_ENGINE_THREADS settle the engine, as in a worker.
    """
    handler = _handler_class(_handler_module(archive_dir))()
    context: Any = SimpleNamespace(
        system_properties={"model_dir": str(archive_dir)}, model_yaml_config=None
    )
    handler.initialize(context)
    return handler


def load_work(archive_dir: Path) -> Work:
    """Load the handler; what comes back runs its verbs and nothing around them."""
    handler = load_handler(archive_dir)
    params = handler.parse_params({})

    def work(images: Sequence[bytes]) -> list[bytes]:
        rows = np.stack([handler.to_network(handler.decode(image)) for image in images])
        outputs = handler.infer(rows)
        return [
            handler.encode(
                handler.from_network({name: array[row] for name, array in outputs.items()}), params
            )
            for row in range(len(images))
        ]

    return work


def decode_and_fit(image: bytes) -> npt.NDArray[np.float32]:
    """The first two verbs alone, for a server that brings its own engine."""
    handler = _bare_handler()
    return handler.to_network(handler.decode(image))


@functools.cache
def _bare_handler() -> ClassificationHandler:
    archive_dir = Path(os.environ["MEDSERVE_BENCH_ARCHIVE_DIR"])
    handler = _handler_class(_handler_module(archive_dir))()
    handler.spec = ModelSpec.from_file(archive_dir / "model-config.yaml")
    handler.prepare()
    return handler


def _handler_module(archive_dir: Path) -> ModuleType:
    """`<model>.py` at the root of the archive; what it imports comes from this checkout."""
    sys.path.append(str(archive_dir))
    return importlib.import_module(ModelSpec.from_file(archive_dir / "model-config.yaml").name)


def _handler_class(module: ModuleType) -> type[ClassificationHandler]:
    """The one class that is defined in the module, as TorchServe finds it."""
    classes = inspect.getmembers(module, inspect.isclass)
    (found,) = (each for _, each in classes if each.__module__ == module.__name__)
    if not issubclass(found, ClassificationHandler):
        raise SystemExit(f"expected a classifier in {module.__name__}, got {found.__name__}")
    return found
