"""Find the third-party libraries that the code of an archive imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

__all__ = ["reachable_files", "required_distributions"]

_TRAVELLING_PACKAGES = ("handlers", "medserve")
_LOADED_BY_NAME = "medserve/inference/engines/"  # the configuration chooses one of them
_BROUGHT_BY_THE_SERVER = ("torch", "ts")


def required_distributions(handler: str, sources: Mapping[str, Path]) -> tuple[str, ...]:
    """Return the names, as on PyPI, of the libraries that a handler can import.

    Every import counts that can be reached from the handler, also one inside a function.

    Args:
        handler: Path in the archive of the handler's file.
        sources: Path in the archive -> file of the checkout.
    """
    modules = {
        module.partition(".")[0]
        for path in reachable_files(handler, sources)
        for module in _imported_modules(sources[path])
    }
    libraries = modules - {*_TRAVELLING_PACKAGES, *_BROUGHT_BY_THE_SERVER, *sys.stdlib_module_names}
    return tuple(sorted(_distribution(name) for name in libraries))


def reachable_files(handler: str, sources: Mapping[str, Path]) -> frozenset[str]:
    """Return the paths of all files that a handler can import; arguments as above."""
    waiting = [handler, *(path for path in sources if path.startswith(_LOADED_BY_NAME))]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _imported_modules(sources[path]):
            if module.partition(".")[0] in _TRAVELLING_PACKAGES:
                waiting += [each for each in _files_of(module) if each in sources]
    return frozenset(seen)


def _imported_modules(path: Path) -> Iterator[str]:
    """Yield the full name of everything that is imported, modules and what stands in them.

    What stands below `if TYPE_CHECKING` is imported by no program.
    """
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(module: str) -> Iterator[str]:
    """Yield the files that Python would run to import a module, should they exist."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        path = "/".join(parts[:length])
        yield f"{path}/__init__.py"
        yield f"{path}.py"


def _distribution(module: str) -> str:
    return _distributions().get(module, [module])[0].lower()


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
