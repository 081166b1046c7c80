"""Spare TorchServe's workers the import of torch, unless their model needs it.

The program of a worker imports torch, most of the time and memory of its start, to recognise an
answer that is a tensor. Until somebody has imported torch there is no tensor, so that one module
gets a stand-in, which passes everything on once torch is there. A handler that imports torch gets
torch itself.

Python imports a module of this name at its start. The folder holds nothing else, because it stands
before the archive's own code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_ASKS = "ts.protocol.otf_message_handler"


class _NoTensor:
    """The type of tensors before there are any."""


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if sys.modules.get("torch") is self:  # another module is imported on the way
            del sys.modules["torch"]
        if name == "Tensor" and "torch" not in sys.modules:
            return _NoTensor
        return getattr(importlib.import_module("torch"), name)


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        """Run the module with the stand-in, where torch is not there already."""
        stand_in = _StandIn("torch")
        sys.modules.setdefault("torch", stand_in)
        try:
            super().exec_module(module)
        finally:
            if sys.modules.get("torch") is stand_in:
                del sys.modules["torch"]


class _Finder:
    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the one module."""
        spec = PathFinder.find_spec(name, path, target) if name == _ASKS else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder)
