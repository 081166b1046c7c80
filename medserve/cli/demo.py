"""`medserve demo`: the whole way once, from trained weights to answers over gRPC."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medserve.archive.build import build_archive, find_checkout, room_names
from medserve.archive.read import golden_input, inspect_archive
from medserve.archive.store import select_archives, stored_names
from medserve.cli.gateway import require_gateway, run_gateway
from medserve.cli.show import sheet
from medserve.cli.show.console import console_for_people, shown
from medserve.cli.show.files import walk, writing_to
from medserve.client import (
    Classification,
    ClassificationOptions,
    Client,
    FrameOptions,
    FrameResult,
    GenerationOptions,
    GenerationResult,
    Regression,
    VolumeOptions,
    VolumeResult,
)
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.errors import MedserveError, UnknownModelError
from medserve.settings import Settings
from medserve.spec import InputKind, ModelSpec, Task

__all__ = ["demo"]

# Real slices that pydicom brings along: a CT of an abdomen and an MR of a brain.
_DICOM_SLICES = ("CT_small.dcm", "MR_small.dcm")
_DRAWN = 16  # synthetic images of one model, about as many of each class


@dataclass(frozen=True)
class _Example:
    """One input of the demonstration."""

    spec: ModelSpec
    title: str
    data: bytes = b""
    broken: bool = False  # damaged on purpose: an error is the right answer
    explained: bool = False  # asked for a second time, with what its class rests on
    wishes: GenerationOptions | None = None  # of a model that makes images, in the place of data


_Outcome = (
    Classification | Regression | VolumeResult | FrameResult | GenerationResult | MedserveError
)


@dataclass(frozen=True)
class _Answer:
    """What one example got."""

    example: _Example
    outcome: _Outcome
    took_ms: float

    @property
    def as_expected(self) -> bool:
        """Whether a good input got an answer and a broken one its error."""
        return isinstance(self.outcome, MedserveError) == self.example.broken

    @property
    def text(self) -> str:
        """The answer in words."""
        match self.outcome:
            case Classification():
                return self.outcome.finding
            case Regression():
                return self.outcome.text
            case VolumeResult():
                volumes = self.outcome.volumes_ml.items()
                return ", ".join(f"{label} {volume:.2f} ml" for label, volume in volumes)
            case FrameResult():
                found, area = self.outcome.stack.frames_found, self.outcome.stack.area_cm2
                size = "" if area is None else f", {area:.2f} cm2"
                return f"found in {found} of {self.outcome.grid.frames} frames{size}"
            case GenerationResult():
                return f"{len(self.outcome.images)} synthetic images"
            case MedserveError():
                return self.outcome.code

    @property
    def probability(self) -> str:
        """Of the class, or of each label that is present, where there is one."""
        if not isinstance(self.outcome, Classification):
            return ""
        return "; ".join(f"{share:.4f}" for _, share in self.outcome.found)

    @property
    def note(self) -> str:
        """What a person should know beside the answer."""
        if isinstance(self.outcome, MedserveError):
            return self.outcome.message
        if isinstance(self.outcome, Regression):
            return ", ".join(self.outcome.doubts)
        if not isinstance(self.outcome, Classification):
            return ""
        notes = ["review"] if self.outcome.review else []
        return ", ".join(notes + ["unlike training data"] * self.outcome.unlike_training)

    def to_json(self) -> dict[str, Any]:
        """The record in demo.json."""
        content: dict[str, Any] = {
            "model": self.example.spec.name,
            "version": self.example.spec.version,
            "input": self.example.title,
            "status": "error" if isinstance(self.outcome, MedserveError) else "ok",
            "took_ms": round(self.took_ms, 1),
        }
        match self.outcome:
            case Classification():
                return content | replace(self.outcome, explanation=None).to_json()
            case Regression():
                return content | self.outcome.to_json()
            case VolumeResult():
                return content | self.outcome.without_files()
            case FrameResult():
                return content | {"stack": self.outcome.stack.to_json()}
            case GenerationResult():
                return content | {
                    "images": [
                        sheet.sample_record(each, self.outcome) for each in self.outcome.images
                    ]
                }
            case MedserveError():
                error = {"code": self.outcome.code, "message": self.outcome.message}
                return content | {"error": error}


def demo(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Rooms, and models in the store, to show.",
            show_default="all of them",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where archives go, and where imported ones lie.",
            show_default="model_store",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where the pictures go.")
    ] = Path("outputs"),
) -> None:
    """Build every archive, start server and gateway, send real images, show the answers, stop.

    A model in the store that is no room, such as an imported one, is asked its golden input.

    Exit code: 0 every example got its answer, 1 some did not, 2 no server came up.
    """
    require_gateway()
    root = find_checkout()
    rooms = room_names(root)
    folder = store or Settings.from_environment().store
    with Console(stderr=True).status("packaging") as status:
        archives = {}
        for name in _names(models, rooms, stored_names(folder)):
            status.update(f"packaging {name}")
            if name in rooms:
                archives[name] = build_archive(name, folder, root)
            else:
                archives[name] = select_archives(folder, [name])[-1].path
        status.update("starting TorchServe; every model answers its golden input first")
        examples = [
            example
            for name, archive in archives.items()
            for example in _examples(root / "models" / name, archive)
        ]
        with Server(ServerConfig(store=folder, models=tuple(archives))) as server:
            answers = asyncio.run(_served(server, examples))
    console_for_people().print(_table(answers))
    _write(answers, out)
    if not all(answer.as_expected for answer in answers):
        raise typer.Exit(1)


def _names(wanted: list[str] | None, rooms: list[str], stored: list[str]) -> list[str]:
    """Return the models to show: those that are wanted, or all."""
    known = list(dict.fromkeys([*rooms, *stored]))
    for name in wanted or ():
        if name not in known:
            raise UnknownModelError(f"expected one of {', '.join(known)}, got {shown(name)}")
    return wanted or known


def _examples(room: Path, archive: Path) -> Iterator[_Example]:
    """The room's own examples, real DICOM slices where it reads such, one damaged file."""
    spec = inspect_archive(archive).spec
    if spec.generation is not None:
        yield from _wishes(spec)
        return
    folder = room / "examples"
    own = list(walk(folder)) if folder.is_dir() else []
    for path in own:
        title, explained = path.relative_to(folder).as_posix(), spec.task is Task.CLASSIFICATION
        yield _Example(spec, title, path.read_bytes(), explained=explained)
    golden = golden_input(archive)
    if not own:
        yield _Example(spec, "golden input", golden)
    if spec.task.packs and InputKind.DICOM in spec.input.kinds:
        from pydicom.data import get_testdata_file

        for name in _DICOM_SLICES:
            found = get_testdata_file(name, download=False)
            if isinstance(found, str):
                yield _Example(spec, name, Path(found).read_bytes())
    yield _Example(spec, "half a file", golden[: len(golden) // 2], broken=True)


def _wishes(spec: ModelSpec) -> Iterator[_Example]:
    """Some images of every class, and more than a call may ask for."""
    count = _DRAWN // max(1, min(_DRAWN, len(spec.labels)))
    for place, label in enumerate(spec.labels[:_DRAWN] or [None]):
        wishes = GenerationOptions(count=count, label=label, seed=100 * place)
        yield _Example(spec, label or "any", wishes=wishes)
    yield _Example(spec, "10000 images", broken=True, wishes=GenerationOptions(count=10_000))


async def _served(server: Server, examples: list[_Example]) -> list[_Answer]:
    """The answers of a gateway before the server, which this process runs meanwhile."""
    from medserve.gateway.server import GatewayServer
    from medserve.gateway.settings import GatewaySettings

    settings = GatewaySettings(grpc_port=0, metrics_port=0, page=False).before(server)
    front = GatewayServer(replace(settings, models=",".join(server.config.models)))
    async with run_gateway(front):
        await front.wait_serving(server.config.start_timeout_s)
        return await asyncio.to_thread(lambda: list(_ask(front.addresses.grpc, examples)))


def _ask(address: str, examples: list[_Example]) -> Iterator[_Answer]:
    with Client(address, timeout_s=60) as client:
        for example in examples:
            started = time.perf_counter()
            outcome = _outcome(client, example)
            took_ms = 1000 * (time.perf_counter() - started)
            if example.explained and isinstance(outcome, Classification):
                outcome = _outcome(client, example, explain=True)
            yield _Answer(example, outcome, took_ms)


def _outcome(client: Client, example: _Example, *, explain: bool = False) -> _Outcome:
    name, data = example.spec.name, example.data
    try:
        match example.spec.task:
            case Task.CLASSIFICATION:
                options = ClassificationOptions(explain=explain)
                return client.classify_one(name, data, options=options)
            case Task.REGRESSION:
                return client.estimate_one(name, data)
            case Task.VOLUMES:
                return client.segment(name, data, options=VolumeOptions(overlay=True))
            case Task.FRAMES:
                return client.segment_frame(name, data, options=FrameOptions(overlay=True))
            case Task.GENERATION:
                return client.sample_all(name, example.wishes)
    except MedserveError as error:
        return error


def _table(answers: list[_Answer]) -> Table:
    shape = Table("model", "input", "answer", "probability", "ms", "note", box=None)
    for column in (3, 4):
        shape.columns[column].justify = "right"
    for answer in answers:
        shape.add_row(
            Text(answer.example.spec.name),
            Text(shown(answer.example.title)),
            Text(shown(answer.text), style="bold" if answer.as_expected else "bold red"),
            answer.probability,
            f"{answer.took_ms:.1f}",
            Text(shown(answer.note)),
        )
    return shape


def _write(answers: list[_Answer], out: Path) -> None:
    """One picture per model, of its inputs or of its first mask, and all answers as JSON."""
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        content = json.dumps([answer.to_json() for answer in answers], indent=2)
        (out / "demo.json").write_text(content + "\n", encoding="utf-8")
        written = [out / "demo.json"]
        names = dict.fromkeys(answer.example.spec.name for answer in answers)
        for name in names:
            own = [answer for answer in answers if answer.example.spec.name == name]
            written += _picture(own, out / f"{name}.png")
    console_for_people().print(Text(f"\nwrote {', '.join(map(str, written))}"))


def _picture(answers: list[_Answer], path: Path) -> list[Path]:
    """The picture of one model's answers; none for a model that makes none."""
    spec = answers[0].example.spec
    if spec.task.packs:
        sheet.draw([_tile(answer) for answer in answers], spec.input, path)
        maps = [tile for answer in answers if (tile := _map(answer)) is not None]
        if not maps:
            return [path]
        beside = path.with_name(f"{path.stem}_explained.png")
        sheet.draw(maps, spec.input, beside)
        return [path, beside]
    drawn = [answer.outcome for answer in answers if isinstance(answer.outcome, GenerationResult)]
    if drawn:
        sheet.contact_sheet([image for each in drawn for image in each.images], path)
        return [path]
    for answer in answers:
        outcome = answer.outcome
        if isinstance(outcome, VolumeResult | FrameResult) and outcome.overlay_png:
            path.write_bytes(outcome.overlay_png)
            return [path]
    return []


def _tile(answer: _Answer) -> sheet.Tile:
    verdict = f"{answer.text} {answer.probability}".strip()
    return sheet.Tile(
        answer.example.data,
        answer.example.title,
        (verdict, answer.note),
        failed=isinstance(answer.outcome, MedserveError),
    )


def _map(answer: _Answer) -> sheet.Tile | None:
    """What a class rests on, over its picture."""
    outcome = answer.outcome
    if not isinstance(outcome, Classification) or outcome.explanation is None:
        return None
    explanation = outcome.explanation
    lines = (
        f"warmest quarter covered: {explanation.without_warmest:.4f}",
        f"coolest quarter covered: {explanation.without_coolest:.4f}",
    )
    return sheet.Tile(
        answer.example.data, f"why {explanation.label}", lines, heatmap=explanation.heatmap_png
    )
