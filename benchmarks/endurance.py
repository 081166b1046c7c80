"""Whether a server holds out: right answers under mixed load for long, and while workers die.

    python -m benchmarks.endurance soak --seconds 1800
    python -m benchmarks.endurance kills --model mednist --kills 100 --every-s 3 --callers 16
    python -m benchmarks.endurance kills --engine direct

Both start `medserve serve` as a user does, learn the known answers while it is quiet, and print one
line of JSON. The exit code is 1 where an answer was wrong or lost, where memory or open files went
on growing in the second half of a soak, or where a killed model was away for longer than 5 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.processes import family, spawn, workers_of
from benchmarks.questions import Question, questions_for, ways_to
from benchmarks.ratios import percentile
from medserve.archive.build import build_archive, room_names
from medserve.archive.store import select_archives
from medserve.errors import ArchiveError
from medserve.settings import EngineKind

__all__ = ["Answers", "Place", "measure_kills", "measure_soak", "serving"]

_BAD = "bad"  # in the kinds of questions that are refused
_START_S = 240.0
_END_S = 260.0  # for callers whose last question is on its way
_LOOK_S = 15.0
_FAULTS = 12  # that are told
_GROWTH_MIB, _GROWTH_FILES = 64, 16  # allowed from the middle of a soak to its end
_BACK_S = 5.0
_MIB = 2**20


@dataclass(frozen=True)
class Place:
    """Where a server is: gRPC and HTTP of its gateway, and its process."""

    grpc: str
    http: str
    pid: int | None = None


@dataclass
class Answers:
    """What became of the questions of all callers.

    Attributes:
        faults: How often an answer was wrong or lost for the same reason; the first reasons.
    """

    right: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    asked_at: dict[str, float] = field(default_factory=dict)  # what a worker answered last
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, question: Question, answer: object, asked_at: float) -> None:
        """Compare an answer with the known one."""
        with self._lock:
            if answer == question.right:
                self.right[question.kind] += 1
                if _BAD not in question.kind:  # which the gateway may refuse by itself
                    last = self.asked_at.get(question.model, asked_at)
                    self.asked_at[question.model] = max(last, asked_at)
            else:
                self.wrong += 1
                self._note(question, f"expected {question.right}, got {answer}")

    def lose(self, question: Question, error: BaseException) -> None:
        """Note a question without an answer."""
        with self._lock:
            self.lost += 1
            self._note(question, _told(error))

    def _note(self, question: Question, text: str) -> None:
        reason = f"{question.model}: {question.kind}: {text[:200]}"
        if reason in self.faults or len(self.faults) < _FAULTS:
            self.faults[reason] += 1

    def to_json(self) -> dict[str, Any]:
        """Return counts and faults."""
        return {
            "right": sum(self.right.values()),
            "wrong": self.wrong,
            "lost": self.lost,
            "by_kind": dict(sorted(self.right.items())),
            "faults": self.faults,
        }


def _told(error: Any) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return repr(error)


def learnt(place: Place, questions: Sequence[Question]) -> list[Question]:
    """Return the questions with their known answers.

    Raises:
        SystemExit: a quiet server gives another answer than the label of an example.
    """
    known = []
    with ways_to(place.grpc, place.http) as ways:
        for each in questions:
            answer = each.ask(ways)
            if each.right is not None and answer != each.right:
                raise SystemExit(f"{each.kind}: expected {each.right}, got {answer}")
            known.append(replace(each, right=answer))
    return known


@contextlib.contextmanager
def asking(place: Place, questions: Sequence[Question], callers: int) -> Iterator[Answers]:
    """Let so many callers ask for the time of the block, and await what they get.

    They ask every question once, and then by chance.
    """
    answers, ended = Answers(), threading.Event()
    weights = [each.weight for each in questions]
    first: queue.SimpleQueue[Question] = queue.SimpleQueue()
    for each in questions:
        first.put(each)

    def call(seed: int) -> None:
        chance = random.Random(seed)
        with ways_to(place.grpc, place.http) as ways:
            while not (ended.is_set() and first.empty()):
                try:
                    question = first.get_nowait()
                except queue.Empty:
                    [question] = chance.choices(questions, weights)
                asked_at = time.monotonic()
                try:
                    answer = question.ask(ways)
                except Exception as error:  # whatever it is, the answer is lost
                    answers.lose(question, error)
                    ended.wait(0.05)  # a dead server must not turn this into a busy loop
                else:
                    answers.count(question, answer, asked_at)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join(_END_S)


@dataclass(frozen=True)
class Use:
    """What a server holds at one moment."""

    second: float
    gateway_mib: float
    others_mib: float  # Java and the workers
    files: int  # open ones of the gateway

    @classmethod
    def of(cls, pid: int, second: float) -> Use:
        """Look at a process and all its children."""
        front, *others = family(pid)
        held = 0.0
        for each in others:
            with contextlib.suppress(psutil.NoSuchProcess):
                held += each.memory_info().rss / _MIB
        return cls(
            round(second, 1),
            round(front.memory_info().rss / _MIB, 1),
            round(held, 1),
            front.num_fds(),
        )


def measure_soak(
    place: Place, questions: Sequence[Question], seconds: float, callers: int = 8
) -> dict[str, Any]:
    """Ask everything for so long; count answers, and look at memory and open files."""
    known = learnt(place, questions)
    curve: list[Use] = []
    began = time.monotonic()
    with asking(place, known, callers) as answers:
        while (passed := time.monotonic() - began) < seconds:
            if place.pid is not None:
                curve.append(Use.of(place.pid, passed))
            time.sleep(min(_LOOK_S, seconds - passed))
    unasked = {each.kind for each in known} - answers.right.keys()
    found = {"seconds": seconds, **answers.to_json(), "unasked": sorted(unasked)}
    if len(curve) > 3:
        found |= {"grew": _growth(curve), "curve": [list(asdict(each).values()) for each in curve]}
    return found


def _growth(curve: Sequence[Use]) -> dict[str, float]:
    """Return by how much the last quarter lies above the second one."""
    quarter = len(curve) // 4
    before, after = curve[quarter : 2 * quarter], curve[-quarter:]

    def most(looks: Sequence[Use], name: str) -> float:
        return float(max(getattr(each, name) for each in looks))

    return {
        name: round(most(after, name) - most(before, name), 1)
        for name in ("gateway_mib", "others_mib", "files")
    }


def measure_kills(
    place: Place,
    questions: Sequence[Question],
    kills: int = 100,
    every_s: float = 3.0,
    callers: int = 16,
) -> dict[str, Any]:
    """Kill a worker of the one model asked about, again and again, while callers ask.

    The time until it is back lasts from the kill to a right answer to what was asked after it.

    Raises:
        SystemExit: it stays away.
    """
    known = learnt(place, questions)
    [model] = {each.model for each in known}
    back_s = []
    assert place.pid is not None
    with asking(place, known, callers) as answers:
        for _ in range(kills):
            next_one = time.monotonic() + every_s
            os.kill(_victim(place.pid, model), signal.SIGKILL)
            killed_at = time.monotonic()
            while answers.asked_at.get(model, 0.0) < killed_at:
                if time.monotonic() > killed_at + _START_S:
                    raise SystemExit(f"{model}: expected an answer within {_START_S:g} s, got none")
                time.sleep(0.01)
            back_s.append(time.monotonic() - killed_at)
            time.sleep(max(0.0, next_one - time.monotonic()))
    return {
        "kills": kills,
        "callers": callers,
        **answers.to_json(),
        "back_s": {
            "median": round(percentile(back_s, 0.5), 2),
            "p95": round(percentile(back_s, 0.95), 2),
            "most": round(max(back_s), 2),
            "each": [round(each, 1) for each in back_s],
        },
    }


def _victim(pid: int, model: str) -> int:
    """Return a worker of the model, as soon as there is one."""
    end = time.monotonic() + _START_S
    while not (found := workers_of(pid, model)):
        if time.monotonic() > end:
            raise SystemExit(f"{model}: expected a worker within {_START_S:g} s, got none")
        time.sleep(0.01)
    return found[0]


@contextlib.contextmanager
def serving(
    store: Path, models: str, scratch: Path, *, engine: str = "torchserve", gateway_port: int = 0
) -> Iterator[Place]:
    """Start `medserve serve`, by default on free ports, and wait until every model is proven."""
    ready = scratch / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "medserve", "serve", "--store", str(store), "--port", "0"]
    command += ["--metrics-port", "0", "--models", models, "--ready-file", str(ready)]
    command += ["--gateway-port", str(gateway_port), "--engine", engine]
    with spawn(command, scratch / "server.log", environment={}) as process:
        end = time.monotonic() + _START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit((scratch / "server.log").read_text(encoding="utf-8")[-2000:])
            time.sleep(0.1)
        front = json.loads(ready.read_text(encoding="utf-8"))["gateway"]
        http = front["page_url"].rstrip("/").rpartition("//")[2]
        yield Place(front["grpc"], http, process.pid)


def _store(given: Path | None, scratch: Path) -> Path:
    """Return the given store, or one with every trained room of the checkout."""
    if given is not None:
        return given
    for name in room_names(Path(__file__).parent.parent):
        with contextlib.suppress(ArchiveError):  # not trained in this checkout
            build_archive(name, scratch / "store")
    return scratch / "store"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the first argument names, print a line of JSON; 1 where it did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("soak", "kills"))
    parser.add_argument("--engine", default="torchserve", choices=tuple(EngineKind))
    parser.add_argument("--store", type=Path, help="archives; every trained room if none is given")
    parser.add_argument("--seconds", type=float, default=1800.0, help="of a soak")
    parser.add_argument("--model", default="mednist", help="whose workers are killed")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--every-s", type=float, default=3.0, help="between two kills, at least")
    parser.add_argument("--callers", type=int, default=0, help="8 of a soak, 16 of kills")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="medserve-endurance-") as name:
        scratch = Path(name)
        store = _store(given.store, scratch)
        if given.what == "kills":
            questions = questions_for(select_archives(store, (given.model,)))
            questions = [each for each in questions if each.model == given.model]
            with serving(store, given.model, scratch, engine=given.engine) as place:
                found = measure_kills(
                    place, questions, given.kills, given.every_s, given.callers or 16
                )
            held = found["back_s"]["most"] <= _BACK_S
        else:
            questions = questions_for(select_archives(store))
            with serving(store, "", scratch, engine=given.engine) as place:
                found = measure_soak(place, questions, given.seconds, given.callers or 8)
            grew = found.get("grew", {})
            held = not found["unasked"] and grew.get("files", 0) <= _GROWTH_FILES
            held &= max(grew.get("gateway_mib", 0), grew.get("others_mib", 0)) <= _GROWTH_MIB
    print(json.dumps(found))
    return 0 if held and not found["wrong"] and not found["lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
