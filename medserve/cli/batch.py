"""`medserve batch`: answer thousands of studies, each once, however often a run is interrupted."""

from __future__ import annotations

import enum
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from medserve.archive.read import verify_archive
from medserve.archive.trust import Trust
from medserve.batch.asking import Asker, ServerAsker, Target
from medserve.batch.local import LocalRun, of_shard
from medserve.batch.processes import ArchiveAsker, archive_target
from medserve.batch.receipts import BatchFolder, BatchHead
from medserve.batch.report import Summary, write_report
from medserve.batch.studies import Shard, Study, list_studies
from medserve.batch.turns import turn
from medserve.batch.work import Answering, Became, Reading
from medserve.cli.connection import CaFile, TokenFile, connect
from medserve.cli.options import add_options, read_options, task_options
from medserve.cli.show.console import console_for_people, shown
from medserve.cli.show.files import writing_to
from medserve.client import Limits
from medserve.cores import available_cores
from medserve.errors import ConfigError
from medserve.spec import Task
from medserve.tasks import OPTIONS

if TYPE_CHECKING:
    from medserve.batch.cluster import ClusterRun

__all__ = ["batch"]

_IMAGES_TIMEOUT_S = 60.0
_VOLUMES_TIMEOUT_S = 600.0
_LONGEST_S = 1e6  # eleven days; a wait of more than 24 days is none for the system
_CALLS_IN_FLIGHT = 4  # to a server: two workers busy, and two calls on their way
_JSON_EVERY_S = 10.0


class ProgressKind(enum.StrEnum):
    """How a run tells how far it is."""

    BAR = "bar"
    JSON = "json"
    NONE = "none"


class RunnerKind(enum.StrEnum):
    """Where an archive answers."""

    LOCAL = "local"
    RAY = "ray"


class _RunByDefault(TyperGroup):
    """A group whose first argument is a command of it, or what `run` shall work on."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before anything that is no command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


batch = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Answer thousands of studies; `medserve batch MANIFEST` is `medserve batch run MANIFEST`.",
)


@batch.callback()
def _batch() -> None:
    """Answer thousands of studies, each once."""


# Options of the command, named here so that the function below reads as what it does.
_Source = Annotated[
    Path, typer.Argument(metavar="MANIFEST|DIR", help="A .csv, .jsonl, .parquet, or a folder.")
]
_Out = Annotated[
    Path, typer.Option(metavar="DIR", file_okay=False, help="Where answers and receipts go.")
]
_Model = Annotated[
    str | None,
    typer.Option(help="Name of the model behind a server.", show_default="the archive's"),
]
_Version = Annotated[str | None, typer.Option(help="Version of the model.")]
_Part = Annotated[
    str | None, typer.Option(metavar="I/N", help="Work on one of N equal parts alone, from 0.")
]
_Where = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="The gateway's gRPC port.", show_default="8001"),
]
_Archive = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.mar",
        exists=True,
        dir_okay=False,
        help="Answer in processes of this machine, without a server.",
    ),
]
_Runner = Annotated[
    RunnerKind, typer.Option(help="Where an archive answers: here, or on a Ray cluster.")
]
_Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes or actors with --archive, calls in flight with a server.",
        show_default="cores; calls: 4",
    ),
]
_Patience = Annotated[
    float, typer.Option(metavar="SECONDS", min=0, help="Wait so long for a server that left.")
]
_Progress = Annotated[
    ProgressKind, typer.Option(help="A bar for people, or lines of JSON for machines.")
]
_Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.001,
        max=_LONGEST_S,
        help="Time for each call.",
        show_default="60, masks 600",
    ),
]


def run(  # one parameter an option: the command line is the interface
    source: _Source,
    out: _Out,
    model: _Model = None,
    version: _Version = None,
    shard: _Part = None,
    server: _Where = None,
    archive: _Archive = None,
    runner: _Runner = RunnerKind.LOCAL,
    workers: _Workers = None,
    patience: _Patience = 120.0,
    progress: _Progress = ProgressKind.BAR,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Timeout = None,
    **given: Any,
) -> None:
    """Answer every study of a manifest or a folder once; run it again to go on.

    A manifest has a column `path` (file, folder of a series, glob or URL), and
    optionally `id` and `options`.
    OUT gets the answers, a receipt for each study, results.csv, results.parquet
    and report.html; with --shard, `medserve batch report OUT` makes these.
    Run again, it skips what is done, repeats what changed, and asks again where
    the server or the disk was at fault.

    Exit code: 0 all answered, 1 some failed, 2 it cannot go on (no server, disk full).

    Examples:
    medserve batch STUDIES --model segmentation_3d --out OUT
    medserve batch studies.csv --archive model.mar --out OUT --workers 2
    medserve batch STUDIES --archive model.mar --out OUT --runner ray
    medserve batch studies.parquet --model mednist --out OUT --shard 3/16 --progress json
    """
    part = Shard.parse(shard) if shard else Shard()
    source, out = source.absolute(), out.absolute()
    with ExitStack() as stack:
        if runner is RunnerKind.RAY:
            cluster = _on_cluster(source, out, archive, model, given)
            cluster = replace(cluster, shard=part, actors=workers, timeout_s=timeout)
            target, begin = cluster.target, cluster.run
        else:
            where = server, token_file, ca_file
            asker, calls = _asker(archive, model, version, timeout, workers, where)
            stack.callback(asker.close)
            target = asker.target
            _check_name(target, model)
            local = _local(out, asker, given, calls, patience)
            begin = partial(local.run, of_shard(_studies(source, target, out), part))
        _take_turn(stack, out, part)
        total = partial(_count, source, target, out, part)
        with _told(progress, target.model, total) as tell:
            counts = _counted(begin(), tell)
    if shard is None and not counts.total():
        _say(shown(f"nothing to do: {source} holds no study"))
    _end(out, counts, progress, with_report=shard is None)


add_options(
    run,
    task_options(*(Task.CLASSIFICATION, Task.VOLUMES, Task.FRAMES), without=("output",)),
)
batch.command("run")(run)


@batch.command("report")
def report(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", exists=True, file_okay=False, help="Of a batch.")
    ],
) -> None:
    """Make results.csv, results.parquet and report.html from the receipts so far.

    Parquet needs the extra `batch`; the table is left out without it.
    """
    _report(out)


def _take_turn(stack: ExitStack, out: Path, part: Shard) -> None:
    """Hold this part of the batch until the run ends."""
    with writing_to(out):
        if not stack.enter_context(turn(out, part)):
            _say(
                "the file system of --out has no locks, so nothing keeps a second run from the "
                "same studies; start none"
            )


def _say(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(sentence, markup=False)


def _asker(
    archive: Path | None,
    model: str | None,
    version: str | None,
    timeout_s: float | None,
    workers: int | None,
    where: tuple[str | None, Path | None, Path | None],
) -> tuple[Asker, int]:
    """Return who answers here, and how many calls are under way at a time."""
    if archive is not None:
        if where[0] is not None:
            raise ConfigError("expected --server or --archive, got both; leave one out")
        return ArchiveAsker(archive, workers, timeout_s=timeout_s), 2 * (
            workers or available_cores()
        )
    if model is None:
        raise ConfigError("--model: expected the name of a model behind a server, got none")
    client = connect(*where, timeout_s or _VOLUMES_TIMEOUT_S)
    asker = ServerAsker(client, model, version)
    if timeout_s is None and asker.target.task.packs:
        client.timeout_s = _IMAGES_TIMEOUT_S
    return asker, workers or _CALLS_IN_FLIGHT


def _on_cluster(
    source: Path, out: Path, archive: Path | None, model: str | None, given: dict[str, Any]
) -> ClusterRun:
    """Return a run on a Ray cluster; the folder of the batch is open."""
    if archive is None:
        raise ConfigError("--runner ray: expected --archive, got none; each actor loads it")
    try:
        from medserve.batch.cluster import ClusterRun
    except ImportError as error:
        raise ConfigError(
            f"--runner ray needs {error.name}, which is not installed; pip install 'medserve[ray]'"
        ) from None
    trust = Trust.from_environment()  # the environment of this machine, not of the cluster's
    target = archive_target(verify_archive(archive, trust))
    _check_name(target, model)
    BatchFolder(out).open(BatchHead(model=target.model, task=target.task))
    return ClusterRun(
        *(archive.absolute(), source, out, target, _options(target, given)),
        per_call=_per_call(target),
        trust=trust,
    )


def _check_name(target: Target, model: str | None) -> None:
    if model not in (None, target.model):
        raise ConfigError(f"--model: expected {target.model}, the archive's, got {model}")


def _options(target: Target, given: dict[str, Any]) -> dict[str, Any]:
    # Measures come in JSON, beside the mask.
    fixed = {} if target.task.packs else {"output": "json"}
    return read_options(OPTIONS[target.task], given, shown(target.model), **fixed).to_params()


def _per_call(target: Target) -> int:
    return Limits().items_per_call if target.task.packs else 1


def _local(
    out: Path, asker: Asker, given: dict[str, Any], calls: int, patience_s: float
) -> LocalRun:
    target = asker.target
    options = _options(target, given)
    folder = BatchFolder(out)
    folder.open(BatchHead(model=target.model, task=target.task))
    return LocalRun(
        Reading(folder, target, options),
        Answering(folder, asker, patience_s),
        threads=calls,
        per_call=_per_call(target),
    )


def _studies(source: Path, target: Target, out: Path) -> Iterator[Study]:
    return list_studies(source, target.task, channels=target.channels, without=out)


def _count(source: Path, target: Target, out: Path, part: Shard) -> int:
    return sum(part.has(study.key) for study in _studies(source, target, out))


def _counted(
    became: Iterable[Counter[Became]], tell: Callable[[Counter[Became]], None]
) -> Counter[Became]:
    counts: Counter[Became] = Counter()
    for each in became:
        counts.update(each)
        tell(counts)
    return counts


@contextmanager
def _told(
    kind: ProgressKind, title: str, count: Callable[[], int]
) -> Iterator[Callable[[Counter[Became]], None]]:
    """Tell how far a run is; a thread counts the studies meanwhile."""
    total = _Total(count) if kind is not ProgressKind.NONE else None
    if kind is ProgressKind.JSON:
        assert total is not None
        lines = _JsonLines(total)
        yield lines.tell
        lines.end()
        return
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=total is None or not console.is_terminal,
    )
    started = time.monotonic()
    with bar:
        task = bar.add_task(title, total=None, rate="")

        def tell(counts: Counter[Became]) -> None:
            asked = counts[Became.ANSWERED] + counts[Became.FAILED]
            rate = f"{asked / max(time.monotonic() - started, 1e-9):.1f}/s"
            known = None if total is None else total.value
            bar.update(task, completed=counts.total(), total=known, rate=rate)

        yield tell


class _Total:
    """Counts the studies in a thread of its own, so that nobody waits for the number."""

    def __init__(self, count: Callable[[], int]) -> None:
        self.value: int | None = None
        self._counted = count
        threading.Thread(target=self._count, name="medserve-count", daemon=True).start()

    def _count(self) -> None:
        try:
            self.value = self._counted()
        except (ConfigError, OSError):
            return  # the run itself tells


class _JsonLines:
    """Writes a line of JSON to standard output every few seconds, and one at the end."""

    def __init__(self, total: _Total) -> None:
        self._total = total
        self._started = self._told = time.monotonic()
        self._counts: Counter[Became] = Counter()

    def tell(self, counts: Counter[Became]) -> None:
        """Note how far the run is."""
        self._counts = counts
        if time.monotonic() - self._told >= _JSON_EVERY_S:
            self._told = time.monotonic()
            self._print(finished=False)

    def end(self) -> None:
        """Write the last line."""
        self._total.value = self._counts.total()
        self._print(finished=True)

    def _print(self, *, finished: bool) -> None:
        asked = self._counts[Became.ANSWERED] + self._counts[Became.FAILED]
        rate = asked / max(time.monotonic() - self._started, 1e-9)
        done, total = self._counts.total(), self._total.value
        left = None if total is None or not rate else round((total - done) / rate, 1)
        line: dict[str, Any] = {each.value: self._counts[each] for each in Became}
        line |= {"done": done, "total": total, "per_s": round(rate, 3), "left_s": left}
        print(json.dumps(line | {"finished": finished}), flush=True)


def _end(out: Path, counts: Counter[Became], progress: ProgressKind, *, with_report: bool) -> None:
    if with_report:
        _report(out, quiet=progress is ProgressKind.JSON)
    if progress is not ProgressKind.JSON:
        kept = counts[Became.KEPT] + counts[Became.KEPT_FAILED]
        console_for_people().print(
            f"{counts[Became.ANSWERED]} answered, {counts[Became.FAILED]} failed, {kept} done "
            f"before (of these {counts[Became.KEPT_FAILED]} failed)"
        )
    if counts[Became.FAILED] or counts[Became.KEPT_FAILED]:
        raise typer.Exit(1)


def _report(out: Path, *, quiet: bool = False) -> Summary:
    with writing_to(out):
        summary, paths = write_report(BatchFolder(out))
    if not quiet:
        console = console_for_people()
        for (code, message), count in summary.failures.most_common(3):
            console.print(shown(f"{count} x {code}: {message}"), markup=False)
        for path in paths:
            console.print(shown(str(path)), markup=False)
    return summary
