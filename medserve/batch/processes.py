"""Worker processes that hold an archive, each with the code that the archive carries."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from medserve.archive.read import ArchiveInfo, verify_archive
from medserve.archive.trust import Trust
from medserve.archive.unpack import unpack_archive
from medserve.batch import worker
from medserve.batch.asking import Outcome, Target, answer_of
from medserve.batch.inputs import Content
from medserve.cores import available_cores
from medserve.errors import (
    ConfigError,
    DeadlineError,
    MedserveError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
    error_from_text,
)
from medserve.run_folder import RunFolder
from medserve.spec import Task
from medserve.tasks import OPTIONS, Options
from medserve.tasks.classification import (
    EXPLAINED_PER_CALL,
    Classification,
    ClassificationOptions,
    read_packed,
)
from medserve.tasks.frames import FrameOptions, FrameResult
from medserve.tasks.regression import Regression
from medserve.tasks.volumes import VolumeOptions, VolumeResult

__all__ = ["ArchiveAsker", "archive_target"]

_START_S = 300.0  # a network is loaded and compiled, and proves itself
_LARGEST_ANSWER_BYTES = 2**31 - 1


class ArchiveAsker:
    """Asks worker processes that hold one archive.

    Args:
        archive: The archive; it is verified, and its code runs.
        workers: How many processes; by default one a core.
        threads: How many each of them computes with; by default the cores are shared out.
        timeout_s: For one call; by default what the archive allows.
        trust: By whose keys the archive has to be signed; by default by those of MEDSERVE_TRUST.
    """

    def __init__(
        self,
        archive: Path,
        workers: int | None = None,
        *,
        threads: int | None = None,
        timeout_s: float | None = None,
        trust: Trust | None = None,
    ) -> None:
        info = verify_archive(archive, trust)
        self._target = archive_target(info)
        self._timeout_s = timeout_s or float(info.spec.serving.response_timeout)
        count = workers or available_cores()
        threads = threads or max(1, available_cores() // count)
        self._folder = RunFolder.create()
        self._closed = False
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        try:
            unpack_archive(info, self._folder.path / "archive")
            for _ in range(count):
                self._workers.append(_Worker(self._folder.path / "archive", threads))
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(_Worker.start, self._workers))
        except BaseException:
            self.close()
            raise
        for each in self._workers:
            self._free.put(each)

    @property
    def target(self) -> Target:
        """The model of the archive."""
        return self._target

    def ask(self, inputs: Sequence[Content], params: Mapping[str, Any]) -> Sequence[Outcome]:
        """Ask the next free worker; one that is lost is started anew."""
        worker = self._free.get()
        try:
            return self._ask(worker, inputs, params)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End the workers and take their folder away; closing again does nothing."""
        for each in self._workers:
            each.end()
        if not self._closed:
            self._closed = True
            self._folder.remove()

    def _ask(
        self, worker: _Worker, inputs: Sequence[Content], params: Mapping[str, Any]
    ) -> Sequence[Outcome]:
        task = self._target.task
        if task.packs:
            asked = OPTIONS[task].from_params(params)
            images = [each for each in inputs if isinstance(each, bytes)]
            is_explained = isinstance(asked, ClassificationOptions) and asked.explain
            step = EXPLAINED_PER_CALL if is_explained else len(images)
            found: list[Outcome] = []
            for first in range(0, len(images), step):
                found += self._ask_images(worker, images[first : first + step], asked)
            return found
        [content] = inputs
        files = (
            {"data": content}
            if isinstance(content, bytes)
            else {f"data.{name}": image for name, image in content.items()}
        )
        result: VolumeResult | FrameResult
        if task is Task.VOLUMES:
            wanted = VolumeOptions.from_params(params).in_json().to_params()
            result = VolumeResult.decode(worker.ask(files, wanted, self._timeout_s))
        else:
            wanted = FrameOptions.from_params(params).in_json().to_params()
            result = FrameResult.decode(worker.ask(files, wanted, self._timeout_s))
        return [answer_of(result, result.provenance)]

    def _ask_images(
        self, worker: _Worker, images: Sequence[bytes], options: Options
    ) -> list[Outcome]:
        files = {f"data.{place}": image for place, image in enumerate(images)}
        try:
            answer = worker.ask(files, options.to_params(), self._timeout_s)
            packed = read_packed(answer, len(images))
        except PayloadTooLargeError as error:
            if len(images) == 1:
                return [error]
            middle = len(images) // 2
            return [
                *self._ask_images(worker, images[:middle], options),
                *self._ask_images(worker, images[middle:], options),
            ]
        kind = Regression if self._target.task is Task.REGRESSION else Classification
        return [
            each
            if isinstance(each, MedserveError)
            else answer_of(kind.from_json(each), packed.provenance)
            for each in packed.outcomes
        ]


def archive_target(info: ArchiveInfo) -> Target:
    """Return the model of an archive; ConfigError where it answers no studies."""
    if info.spec.task is Task.GENERATION:
        raise ConfigError(f"{info.name}: expected a model that answers studies, got a sampler")
    volume = info.spec.volume
    channels = tuple(volume.channels) if volume is not None else ()
    return Target(info.name, info.version, info.digest, info.spec.task, channels)


class _Worker:
    """One process; a call that finds it gone starts the next one."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def start(self) -> None:
        """Start the process and wait until it has proven itself.

        Raises:
            ModelNotReadyError: it has not.
        """
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._requests = Connection(ours_out, readable=False)
        self._replies = Connection(ours_in, writable=False)
        environment = os.environ | {
            "MEDSERVE_ENGINE_THREADS": str(self._threads),
            "MEDSERVE_MAX_RESPONSE_BYTES": str(_LARGEST_ANSWER_BYTES),
        }
        script = [sys.executable, str(worker.__file__), str(self._folder)]
        try:
            self._process = subprocess.Popen(
                [*script, str(theirs_in), str(theirs_out)],
                pass_fds=(theirs_in, theirs_out),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the runner, which then ends the workers
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        try:
            word, text = self._reply(_START_S)
        except (EOFError, OSError) as error:
            self._stop()
            raise ModelNotReadyError("a worker ended before it was ready") from error
        if word != b"ready":
            self._stop()
            raise error_from_text(text.decode()) or ModelNotReadyError(text.decode())

    def ask(self, files: Mapping[str, bytes], params: Mapping[str, Any], timeout_s: float) -> bytes:
        """Return the archive's answer to one call.

        Raises:
            MedserveError: why there is none; ServerBusyError where the process was lost.
        """
        if self._ended:
            raise ServerBusyError("the batch is ending")
        if self._process is None:
            self.start()
        try:
            self._requests.send_bytes(json.dumps({"names": [*files], "params": params}).encode())
            for content in files.values():
                self._requests.send_bytes(content)
            word, answer = self._reply(timeout_s)
        except DeadlineError:
            self._stop()
            raise
        except (EOFError, OSError) as error:
            self._stop()
            raise ServerBusyError(
                "a worker process was lost (killed, or out of memory); the study is asked again"
            ) from error
        if word == b"answer":
            return answer
        text = answer.decode("utf-8", "replace")
        raise error_from_text(text) or ServerFailedError(text)

    def end(self) -> None:
        """End the process for good."""
        self._ended = True
        self._stop()

    def _reply(self, timeout_s: float) -> tuple[bytes, bytes]:
        if not self._replies.poll(timeout_s):
            raise DeadlineError(f"expected an answer within {timeout_s:g} s; allow more")
        return self._replies.recv_bytes(), self._replies.recv_bytes()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        for end in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                end.close()
