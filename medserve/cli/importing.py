"""`medserve import` turns models of other tools into archives; `medserve try` asks one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from medserve.archive.build import archive_path
from medserve.archive.read import inspect_archive
from medserve.cli.show.files import OutFolder
from medserve.errors import ConfigError
from medserve.settings import Settings
from medserve.spec import ModelSpec, Task

if TYPE_CHECKING:
    from medserve.importing.package import Imported
    from medserve.importing.source import Described, Source

__all__ = ["import_", "try_"]

_MASK, _OVERLAY = "mask.nii.gz", "overlay.png"  # that `try` writes
_Name = Annotated[str, typer.Option("--name", help="Under which the model is served.")]
_Version = Annotated[str, typer.Option("--version", help="Of the archive.")]
_Store = Annotated[
    Path | None, typer.Option(help="Folder for the archive.", show_default="model_store")
]
_Example = Annotated[
    list[Path] | None,
    typer.Option(
        "--example",
        help="A NIfTI file of a case (one for each channel), or a picture, with which the archive "
        "proves itself; it travels in the archive. Computed by default.",
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be, and write nothing.")]

import_ = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@import_.callback()
def _import() -> None:
    """Turn a model of another tool into an archive; nothing in it is executed."""


@import_.command("nnunet")
def nnunet(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="With plans.json, dataset.json and fold_*.")
    ],
    name: _Name,
    folds: Annotated[
        str, typer.Option(help="Which to average, such as 0,1,2,3,4 or all; all that are there.")
    ] = "",
    configuration: Annotated[
        str, typer.Option(help="Refuse a folder of another one, such as 3d_fullres.")
    ] = "",
    checkpoint: Annotated[
        str, typer.Option(help="File of each fold, such as checkpoint_best.pth.")
    ] = "checkpoint_final.pth",
    postprocessing: Annotated[
        Path | None, typer.Option(help="postprocessing.json, to be applied; by default none is.")
    ] = None,
    example: _Example = None,
    version: _Version = "1.0",
    store: _Store = None,
    dry_run: _DryRun = False,
) -> None:
    """Import a folder that nnU-Net v2 trained; it answers as nnUNetv2_predict does on a CPU."""
    with _with_extra():
        from medserve.importing.nnunet import read_folder
    chosen = [fold.strip() for fold in folds.split(",") if fold.strip()]
    source = read_folder(folder, name, chosen, configuration, postprocessing, checkpoint)
    _finish(source, version, store, example or [], dry_run=dry_run)


@import_.command("bundle")
def bundle(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="With configs/ and models/ of a MONAI bundle.")
    ],
    name: _Name,
    example: _Example = None,
    version: _Version = "1.0",
    store: _Store = None,
    dry_run: _DryRun = False,
) -> None:
    """Import a MONAI bundle; it answers as MONAI's own inference workflow does on a CPU."""
    with _with_extra():
        from medserve.importing.bundle import read_bundle
    source = read_bundle(folder, name, with_weights=not dry_run)
    _finish(source, version, store, example or [], dry_run=dry_run)


_Spec = Annotated[
    Path, typer.Option("--spec", help="Its description, as `medserve init` writes it.")
]


@import_.command("onnx")
def onnx(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="One input, weights inside.")],
    spec: _Spec,
    example: _Example = None,
    store: _Store = None,
    dry_run: _DryRun = False,
) -> None:
    """Import a network of ONNX with a description of what it reads and answers."""
    with _with_extra():
        from medserve.importing.described import read_onnx
    _described(partial(read_onnx, file, spec), spec, store, example, dry_run=dry_run)


@import_.command("torchscript")
def torchscript(
    file: Annotated[Path, typer.Argument(metavar="FILE.pt", help="A program: trust its maker.")],
    spec: _Spec,
    example: _Example = None,
    store: _Store = None,
    dry_run: _DryRun = False,
) -> None:
    """Import a network of TorchScript with a description of what it reads and answers."""
    with _with_extra():
        from medserve.importing.described import read_torchscript
    _described(lambda _: read_torchscript(file, spec), spec, store, example, dry_run=dry_run)


def try_(
    archive: Annotated[
        Path,
        typer.Argument(
            metavar="ARCHIVE.mar", help="Of a model of volumes, frames, classes or numbers."
        ),
    ],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="One case, a file for each channel; or pictures."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for mask and overlay.")] = Path("outputs/try"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Answer in this process, without a server: mask, overlay and volumes; classes, or numbers."""
    task = inspect_archive(archive).spec.task
    if task is Task.CLASSIFICATION:
        _try_classes(archive, files)
        return
    if task is Task.REGRESSION:
        _try_numbers(archive, files)
        return
    with OutFolder(out, overwrite=overwrite) as folder:
        if task is Task.FRAMES:
            _try_frames(archive, files, folder)
        else:
            _try_volumes(archive, files, folder)


def _try_classes(archive: Path, files: list[Path]) -> None:
    with _with_extra():
        from medserve.importing.trying import classify_files
    for path, found in zip(files, classify_files(archive, files), strict=True):
        told = "; ".join(f"{label} {share:.4f}" for label, share in found.found) or found.finding
        typer.echo(f"{path}: {told}{', look' * found.review}")


def _try_numbers(archive: Path, files: list[Path]) -> None:
    with _with_extra():
        from medserve.importing.trying import estimate_files
    for path, found in zip(files, estimate_files(archive, files), strict=True):
        doubts = "".join(f", look: {each}" for each in found.doubts)
        typer.echo(f"{path}: {found.text}{doubts}")


def _try_frames(archive: Path, files: list[Path], folder: OutFolder) -> None:
    with _with_extra():
        from medserve.importing.golden import as_png
        from medserve.importing.trying import segment_frames
        from medserve.results.files.overlay import blend
        from medserve.results.frame_segmentation import mask_png
    names = [(f"{path.stem}_mask.png", f"{path.stem}_overlay.png") for path in files]
    folder.refuse_existing([name for pair in names for name in pair])
    labels, answers = segment_frames(archive, files)
    for pair, (image, found) in zip(names, answers, strict=True):
        mask = folder.write(pair[0], mask_png(found.mask, len(labels)))
        picture = folder.write(pair[1], as_png(blend(image.array, found.mask)))
        sizes = (f"{label} {int((found.mask == place).sum())}"
                 for place, label in enumerate(labels[1:], start=1))  # fmt: skip
        typer.echo(f"pixels: {', '.join(sizes)}: {mask} and {picture}")


def _try_volumes(archive: Path, files: list[Path], folder: OutFolder) -> None:
    with _with_extra():
        from medserve.importing.trying import ask_archive
        from medserve.results.files import overlay
    folder.refuse_existing([_MASK, _OVERLAY])
    tried = ask_archive(archive, files)
    mask = folder.write(_MASK, tried.mask_nifti())
    picture = folder.write(_OVERLAY, overlay.montage(tried.volume, tried.segmentation))
    for label, volume_ml in tried.segmentation.volumes_ml.items():
        typer.echo(f"{label}: {volume_ml:.2f} ml")
    typer.echo(f"{mask} and {picture}")


@contextmanager
def _with_extra() -> Iterator[None]:
    """Say which extra is missing where a library is."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"importing needs {error.name}, which is not installed; pip install 'medserve[import]'"
        ) from None


def _described(
    read: Callable[[Path], Source | Described],
    spec: Path,
    store: Path | None,
    example: list[Path] | None,
    *,
    dry_run: bool,
) -> None:
    """Import what `read` makes, in a folder for its files, with the version of a description."""
    with tempfile.TemporaryDirectory(prefix="medserve-import-") as folder:
        source = read(Path(folder))
        version = ModelSpec.from_file(spec).version
        _finish(source, version, store, example or [], dry_run=dry_run)


def _finish(
    source: Source | Described,
    version: str,
    store: Path | None,
    example: list[Path],
    *,
    dry_run: bool,
) -> None:
    """Export, compare and pack; end with how the model is served and asked."""
    console = Console(soft_wrap=True, highlight=False)
    folder = store or Settings.from_environment().store
    spec = ModelSpec.from_mapping(source.config(version, "openvino"))
    if dry_run:
        _print_plan(source, spec, archive_path(spec, folder), console)
        return
    watched = Console(stderr=True, soft_wrap=True, highlight=False)
    with watched.status("reading") as status:
        outcome = _imported(
            source, folder, version, example, lambda step: status.update(escape(step))
        )
    best = next(each for each in outcome.agreements if each.engine is outcome.engine)
    compared, files = _asked_with(spec)
    console.print(
        f"{escape(str(outcome.archive))}: {outcome.engine} gives the network's own answer for "
        f"{best.share:.4%} of the {compared} (report: {escape(str(outcome.report))}). Serve it "
        f"with `medserve serve --models {spec.name} --store {escape(str(folder))}`, ask it with "
        f"`medserve predict {spec.name} {files}."
    )


def _imported(
    source: Source | Described,
    store: Path,
    version: str,
    example: list[Path],
    progress: Callable[[str], None],
) -> Imported:
    from medserve.importing.package import import_model
    from medserve.importing.pictures import import_pictures
    from medserve.importing.source import Described

    if isinstance(source, Described):
        return import_pictures(source, store, version, example, progress)
    return import_model(source, store, version, example, progress)


def _asked_with(spec: ModelSpec) -> tuple[str, str]:
    """Return what was compared, and the files of a question, with their order behind them."""
    if spec.volume is None:
        compared = "pictures" if spec.frame is None else "pixels"
        compared = "values" if spec.values else compared
        return "labels of the pictures" if spec.has_independent_labels else compared, "picture.png`"
    channels = spec.volume.channels
    files = [f"case_{number:04d}.nii.gz" for number in range(len(channels))] or ["case.nii.gz"]
    order = f" ({escape(', '.join(channels))})" if channels else ""
    return "voxels", f"{' '.join(files)}`{order}"


def _print_plan(
    source: Source | Described, spec: ModelSpec, archive: Path, console: Console
) -> None:
    rows = {
        "would write": str(archive),
        "from": source.origin,
        "licence": source.licence,
        "values" if spec.values else "labels": ", ".join(
            spec.labels or [f"{each.name} ({each.unit_name})" for each in spec.values]
        ),
        "network's input": " x ".join(map(str, spec.input.size)),
    }
    if spec.frame is not None:
        rows |= {
            "crop": spec.frame.crop.kind.value,
            "threshold": f"{spec.frame.threshold:g}",
            "filter": spec.frame.filter.kind.value,
        }
    elif spec.volume is None:
        own = zip(spec.input.mean, spec.input.deviation, strict=True)
        rows |= {
            "channels": f"{spec.input.channels}, {spec.input.fit}, proportions "
            f"{spec.input.proportions}",
            "mean, deviation": "; ".join(f"{mean:g}, {by:g}" for mean, by in own) or "none",
        }
        if spec.output is not None:
            rows["scores"] = spec.output.scores.value
    else:
        spacing_mm = spec.volume.spacing_mm
        rows |= {
            "images": ", ".join(spec.volume.channels) or "one",
            "networks": str(spec.volume.ensemble),
            "spacing (mm)": " x ".join(f"{mm:g}" if mm else "own" for mm in spacing_mm) or "any",
            "axes": spec.volume.orientation,
            "mirror images": "yes" if spec.volume.flips else "no",
        }
    for key, value in rows.items():
        console.print(f"{key:>16}  {escape(value)}")
