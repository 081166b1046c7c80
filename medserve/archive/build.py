"""Build one self-contained model archive (`.mar`): from a room of the checkout, or from any files.

torch-model-archiver writes the archive; afterwards the zip is written again with sorted members,
one fixed time and one fixed mode, so that the same inputs always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from medserve import __version__
from medserve.archive.read import (
    CARD,
    MANIFEST,
    TORCHSERVE_MANIFEST,
    ArchiveInfo,
    intact_archive,
)
from medserve.archive.reference import REFERENCE, Reference
from medserve.archive.requirements import reachable_files, required_distributions
from medserve.archive.unpack import unpack_archive
from medserve.errors import ArchiveError, ConfigError, UnknownModelError
from medserve.spec import ModelSpec

__all__ = [
    "archive_path",
    "build_archive",
    "carried_code",
    "find_checkout",
    "pack_archive",
    "pack_with_reference",
    "room_names",
    "variant_names",
]

# What a handler may import from medserve travels with it: rolling back an archive rolls back its
# preprocessing.
_TRAVELLING = (
    "__init__.py",
    "cores.py",
    "errors.py",
    "tracing.py",
    "spec",
    "tasks",
    "imaging",
    "results",
    "inference",
)
_WEIGHTS = ("model.onnx", "model.pt", "golden_output.npz", "metrics.json")
# What a room may have beside them; its handler refuses to serve without what it needs, and without
# a reference the gateway tells no drift.
_FURTHER_WEIGHTS = ("fingerprints.npz", REFERENCE)
_RECORDED = ("torch", "torchserve", "torch-model-archiver")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can name


def archive_path(spec: ModelSpec, store: Path) -> Path:
    """Where the archive of this version lies: versions stand side by side."""
    return store / f"{spec.name}-{spec.version}.mar"


def find_checkout(start: Path | None = None) -> Path:
    """The checkout with `models/` and `handlers/`: around `start`, else around this package."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "handlers" / "__init__.py").is_file() and (folder / "models").is_dir():
            return folder
    raise ConfigError(
        f"expected to be inside a checkout (folders models/ and handlers/), got {here}; "
        f"archives are built from a checkout and served anywhere"
    )


def room_names(root: Path) -> list[str]:
    """Every folder of `models/` that has a configuration."""
    return sorted(path.parent.name for path in (root / "models").glob("*/model-config.yaml"))


def variant_names(root: Path, name: str) -> list[str]:
    """Every folder of `models/<name>/variants/` that has a configuration."""
    found = (root / "models" / name).glob("variants/*/model-config.yaml")
    return sorted(path.parent.name for path in found)


def build_archive(name: str, store: Path, root: Path | None = None, variant: str = "") -> Path:
    """Package the room `name` of the checkout `root` into `store` and verify the result.

    With `variant`, package that variant of it instead: another version of the same model, with
    the handler of the room and a configuration, a card and weights of its own.

    Raises:
        UnknownModelError: there is no such room, or no such variant in it.
        ArchiveError: the room is incomplete; the message names what is missing.
        ConfigError: not in a checkout, or the `serve` extra is not installed.
    """
    root = root or find_checkout()
    if name not in room_names(root):
        raise UnknownModelError(f"expected one of {', '.join(room_names(root))}, got {name!r}")
    room = _room(root, name, variant)
    spec = ModelSpec.from_file(room / "model-config.yaml")
    if spec.name != name or not spec.version.endswith(f"-{variant}" if variant else ""):
        version = f" and a version that ends with -{variant}" if variant else ""
        raise ConfigError(
            f"{room.relative_to(root)}: expected the name {name!r}{version}, got {spec.name!r} "
            f"and {spec.version!r}"
        )
    sources = _sources(root, room, spec)
    return pack_archive(spec, sources, store, _git_commit(root, sources.values()))


def pack_archive(spec: ModelSpec, sources: Mapping[str, Path], store: Path, commit: str) -> Path:
    """Pack files into the archive of a model, verify it and put it into `store`.

    Args:
        spec: The model.
        sources: Path in the archive -> file; handler, artifacts, golden pair and card among them.
        store: Folder of the archives.
        commit: Of the code that travels; "unknown" outside of a checkout.

    Raises:
        ConfigError: the `serve` extra is not installed.
    """
    required = required_distributions(f"{spec.name}.py", sources)
    store.mkdir(parents=True, exist_ok=True)
    target = archive_path(spec, store)
    with tempfile.TemporaryDirectory(prefix="medserve-package-") as folder:
        stage = Path(folder) / "stage"
        _stage(stage, sources)
        versions = {package: _installed(package) for package in required}
        pinned = "".join(f"{package}=={version}\n" for package, version in versions.items())
        (stage / "requirements.txt").write_text(pinned, encoding="utf-8")
        manifest = _manifest(spec, commit, stage, versions)
        (stage / MANIFEST).write_text(_json(manifest), encoding="utf-8")
        built = _run_archiver(spec, stage, Path(folder))
        normalised = Path(folder) / "normalised.mar"
        _normalise(built, normalised)
        intact_archive(normalised)
        _publish(normalised, target)
    return target


def pack_with_reference(archive: ArchiveInfo, reference: Reference, version: str) -> Path:
    """Pack a copy of an archive that has a reference, as another version beside it.

    Raises:
        ArchiveError: the archive changed since it was read, or the version is no version.
        ConfigError: that version is there already, or the `serve` extra is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="medserve-sketch-") as temporary:
        folder = Path(temporary)
        unpack_archive(archive, folder)
        for written in (MANIFEST, TORCHSERVE_MANIFEST, "requirements.txt"):
            (folder / written).unlink(missing_ok=True)
        (folder / REFERENCE).write_bytes(reference.encode())
        described = folder / "model-config.yaml"
        config = yaml.safe_load(described.read_text(encoding="utf-8"))
        config["medserve"]["version"] = version
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        described.write_text(text, encoding="utf-8")
        spec, store = ModelSpec.from_file(described), archive.path.parent
        if archive_path(spec, store).exists():
            raise ConfigError(f"expected a version that {store} does not hold, got {version}")
        inside = (path for path in folder.rglob("*") if path.is_file())
        sources = {path.relative_to(folder).as_posix(): path for path in inside}
        return pack_archive(spec, sources, store, archive.git_commit)


def carried_code(handler: Path) -> dict[str, Path]:
    """Return path in the archive -> file of the code that a handler needs, handler included.

    Works from an installed wheel as from a checkout: the wheel brings the handlers as files.

    Args:
        handler: File of the model's own handler; its name is that of the model.

    Raises:
        ConfigError: the handlers are not there.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "archive" / "handlers", package.parent / "handlers")
    handlers = next((each for each in places if (each / "__init__.py").is_file()), None)
    if handlers is None:
        raise ConfigError(
            "expected the handlers beside medserve, there are none; install medserve again"
        )
    found = {handler.name: handler}
    found |= {f"handlers/{path.relative_to(handlers)}": path for path in _python_files(handlers)}
    found |= _travelling(package)
    needed = reachable_files(handler.name, found)
    return {
        inside: path
        for inside, path in sorted(found.items())
        if inside in needed or inside.startswith("medserve/")
    }


def _room(root: Path, name: str, variant: str) -> Path:
    room = root / "models" / name
    if not variant:
        return room
    if variant not in (known := variant_names(root, name)):
        there = ", ".join(known) or "none"
        raise UnknownModelError(f"expected a variant of {name} out of {there}, got {variant!r}")
    return room / "variants" / variant


def _sources(root: Path, room: Path, spec: ModelSpec) -> dict[str, Path]:
    """Path in the archive -> file of the checkout; ArchiveError lists what the room lacks."""
    weights = room / "weights"
    wanted = {
        f"{spec.name}.py": root / "handlers" / f"{spec.name}.py",
        "model-config.yaml": room / "model-config.yaml",
        CARD: room / "README.md",
    } | {file: weights / file for file in _WEIGHTS}
    golden = sorted(weights.glob("golden_input.*"))
    missing = [str(path.relative_to(root)) for path in wanted.values() if not path.is_file()]
    if len(golden) != 1:
        missing.append(f"{weights.relative_to(root)}/golden_input.* (exactly one)")
    if missing:
        raise ArchiveError(
            f"{spec.name} cannot be packaged, missing: {', '.join(missing)}; "
            f"`python -m training.{room.name}` writes the weights"
        )
    wanted[golden[0].name] = golden[0]
    further = {file: weights / file for file in _FURTHER_WEIGHTS}
    wanted |= {file: path for file, path in further.items() if path.is_file()}
    own_handlers = {f"{room_name}.py" for room_name in room_names(root)}
    for path in _python_files(root / "handlers"):
        if path.name not in own_handlers:
            wanted[path.relative_to(root).as_posix()] = path
    wanted |= _travelling(root / "medserve")
    return dict(sorted(wanted.items()))


def _travelling(package: Path) -> dict[str, Path]:
    """Path in the archive -> file, of what a handler may import from medserve."""
    return {
        path.relative_to(package.parent).as_posix(): path
        for part in _TRAVELLING
        for place in package.glob(part)
        for path in _python_files(place)
    }


def _python_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    yield from sorted(path.rglob("*.py"))


def _stage(stage: Path, sources: Mapping[str, Path]) -> None:
    for inside, source in sources.items():
        target = stage / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _manifest(
    spec: ModelSpec, commit: str, stage: Path, required: Mapping[str, str]
) -> dict[str, object]:
    """What the archive says about itself; `members` covers every file but the two manifests."""
    versions = {"python": platform.python_version(), **required}
    versions |= {package: _installed(package) for package in _RECORDED}
    staged = sorted(path for path in stage.rglob("*") if path.is_file())
    return {
        "format": 1,
        "name": spec.name,
        "version": spec.version,
        "medserve_version": __version__,
        "git_commit": commit,
        "versions": versions,
        "metrics": _summary(stage / "metrics.json"),
        "labels": list(spec.labels),
        "members": {
            path.relative_to(stage).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in staged
        },
    }


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"packaging needs {package}, which is not installed; "
            f"install medserve with its extra: pip install 'medserve[serve]'"
        ) from None


def _summary(path: Path) -> dict[str, Any]:
    """The single figures of `metrics.json`; tables stay in the file itself."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArchiveError(f"metrics.json is not JSON: {error}") from error
    if not isinstance(metrics, dict):
        raise ArchiveError("metrics.json: expected an object of figures")
    return {
        key: value for key, value in sorted(metrics.items()) if isinstance(value, int | float | str)
    }


def _git_commit(root: Path, sources: Iterable[Path]) -> str:
    """The last commit that touched an input, "-dirty" if one differs from it.

    Not HEAD: a commit elsewhere in the repository must not change the archive.
    """
    paths = [str(path.relative_to(root)) for path in sources]
    commit = _git(root, "log", "-1", "--format=%H", "--", *paths)
    if not commit:
        return "unknown"
    changed = _git(root, "status", "--porcelain", "--", *paths)
    return f"{commit}-dirty" if changed or changed is None else commit


def _git(root: Path, *arguments: str) -> str | None:
    """Output of git, or None where git or the repository is missing."""
    try:
        run = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _run_archiver(spec: ModelSpec, stage: Path, folder: Path) -> Path:
    """Run torch-model-archiver on the staged files.

    It collects its files in `<TMPDIR>/<model name>`, so two builds of one model would delete each
    other's: each gets a TMPDIR of its own. It copies the *contents* of the directory that
    `--extra-files` names, which keeps the packages inside `stage` whole.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += ["--model-name", spec.name, "--version", spec.version]
    command += ["--handler", str(stage / f"{spec.name}.py")]
    command += ["--serialized-file", str(stage / "model.onnx")]
    command += ["--config-file", str(stage / "model-config.yaml")]
    command += ["--requirements-file", str(stage / "requirements.txt")]
    command += ["--extra-files", str(stage), "--export-path", str(folder)]
    command += ["--archive-format", "zip-store"]
    run = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(scratch)}
    )
    built = folder / f"{spec.name}.mar"
    if run.returncode != 0 or not built.is_file():
        reason = (run.stderr.strip().splitlines() or ["no output"])[-1]
        raise ArchiveError(f"torch-model-archiver could not build {spec.name}: {reason}")
    return built


def _normalise(built: Path, target: Path) -> None:
    """Write the archive again without anything that depends on when or where it was built."""
    with zipfile.ZipFile(built) as source, zipfile.ZipFile(target, "w") as archive:
        for name in sorted(source.namelist()):
            content = source.read(name)
            if name == TORCHSERVE_MANIFEST:
                stamped = json.loads(content)
                stamped["createdOn"] = "01/01/1980 00:00:00"  # TorchServe warns if it is absent
                content = _json(stamped).encode()
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.create_system = 3  # Unix, whatever built it
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)


def _publish(built: Path, target: Path) -> None:
    """Move into the store in one step: a server never sees half an archive."""
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as part:
        with built.open("rb") as source:
            shutil.copyfileobj(source, part)
        Path(part.name).chmod(0o644)
    Path(part.name).replace(target)
