"""How the ordinary client runs the asyncio client: threads, ends, forked processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from medserve.client import Client, Limits, Segmentation
from medserve.errors import ServerUnreachableError
from tests.client.fake_gateway import LABELS, FakeGateway, held, serving
from tests.client.segmenting import by_size, volumes_model
from tests.gateway.fake_engine import Request

pytestmark = pytest.mark.loopback

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def numbered(n: int) -> list[bytes]:
    return [f"{LABELS[place % 6]} {place}".encode() for place in range(n)]


def test_one_client_serves_several_threads(client: Client) -> None:
    def work(start: int) -> list[str]:
        found = client.classify("mednist", numbered(100)[start:])
        return [each.unwrap().label for each in found]

    with ThreadPoolExecutor(8) as pool:
        for start, labels in enumerate(pool.map(work, range(8))):
            assert labels == [LABELS[place % 6] for place in range(start, 100)]


def test_images_are_taken_in_the_thread_of_the_caller(client: Client) -> None:
    threads: set[threading.Thread] = set()

    def images() -> Iterator[bytes]:
        for image in numbered(100):
            threads.add(threading.current_thread())
            yield image

    assert len(list(client.classify_each("mednist", images()))) == 100
    assert threads == {threading.current_thread()}


def test_progress_is_told_in_the_thread_of_the_caller(client: Client) -> None:
    threads: set[threading.Thread] = set()
    client.classify(
        "mednist", numbered(40), progress=lambda *_: threads.add(threading.current_thread())
    )
    assert threads == {threading.current_thread()}


def test_an_error_of_the_caller_s_own_iterator_is_raised_as_it_is(client: Client) -> None:
    def images() -> Iterator[bytes]:
        yield from numbered(40)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(client.classify_each("mednist", images()))
    assert client.ping() == "Healthy"


def test_answers_that_come_while_the_caller_is_busy_are_kept(tmp_path: Path) -> None:
    fake = FakeGateway(volumes_model(), answer=by_size)
    with serving(fake), Client(fake.address, limits=Limits(attempts=1)) as client:
        results = client.segment_each("mednist", [b"x" * size for size in (1, 2, 3, 4)])
        found = []
        for result in results:
            time.sleep(0.1)  # the next one is answered meanwhile
            found.append(Segmentation.from_result(result.unwrap()).mask.sum())
    assert found == [3, 4, 5, 6]  # and one voxel of label 2


def test_stream_that_is_forgotten_ends_its_calls(
    client: Client, fake: FakeGateway, release: threading.Event
) -> None:
    def answered_after_another_came(_: Request) -> None:
        while len(fake.requests) < 2 and not release.wait(0.01):
            pass

    fake.hooks = [answered_after_another_came, held(release)]
    stream = client.classify_each("mednist", numbered(500))
    next(stream)
    del stream
    gc.collect()
    assert fake.cancelled.wait(60)  # though nothing was answered
    release.set()
    assert client.ping() == "Healthy"
    assert len(fake.requests) <= 3


def test_a_running_call_ends_when_another_thread_closes_the_client(
    fake: FakeGateway, release: threading.Event
) -> None:
    client = Client(fake.address)

    def close(request: Request) -> None:
        client.close()
        release.wait(60)  # no answer: the call ends because of the client

    fake.hooks = [close]
    with pytest.raises(ServerUnreachableError, match="closed"):
        client.classify_one("mednist", b"Hand")


def test_a_client_works_beside_a_running_event_loop(client: Client) -> None:
    async def scenario() -> str:
        return client.classify_one("mednist", b"Hand").label

    assert asyncio.run(scenario()) == "Hand"


def test_the_time_for_a_call_may_be_changed(client: Client, fake: FakeGateway) -> None:
    for timeout_s in (100.0, 1000.0):
        client.timeout_s = timeout_s
        client.classify_one("mednist", b"Hand")
        assert client.timeout_s == timeout_s
    first, second = (request.deadline for request in fake.requests)
    assert first is not None
    assert second == pytest.approx(first + 900, abs=60)  # and what passed between the two


_INTERRUPTED = """
import signal, sys
from medserve.client import Client

# Who starts the tests in the background of a shell has switched it off for all of them.
signal.signal(signal.SIGINT, signal.default_int_handler)

client = Client(sys.argv[1])
try:
    client.classify_one("mednist", b"Hand")
except KeyboardInterrupt:
    print("interrupted")
print(client.ping())
"""


@pytest.mark.process
def test_ctrl_c_ends_a_call_and_the_client_goes_on(fake: FakeGateway) -> None:
    ended = threading.Event()

    def press_ctrl_c(request: Request) -> None:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # another test's, which has just ended
                if fake.address in child.cmdline():
                    child.send_signal(signal.SIGINT)
        ended.wait(60)  # no answer: the call ends because it was interrupted

    fake.hooks = [press_ctrl_c]
    try:
        assert run(_INTERRUPTED, fake) == ["interrupted", "Healthy"]
    finally:
        ended.set()


_FORGETFUL = """
import sys
from medserve.client import Client

client = Client(sys.argv[1])
stream = client.classify_each("mednist", [b"Hand"] * 100)
print(next(stream).unwrap().label)
"""


@pytest.mark.process
def test_a_program_that_closes_nothing_ends_quietly(fake: FakeGateway) -> None:
    assert run(_FORGETFUL, fake) == ["Hand"]


_FORKED_AFTER_A_CALL = """
import os, sys
from medserve.client import Client
from medserve.errors import ConfigError

parents = Client(sys.argv[1])
print(parents.classify_one("mednist", b"Hand").label)
sys.stdout.flush()
if os.fork() == 0:
    for client in (parents, Client(sys.argv[1])):
        try:
            client.ping()
        except ConfigError as error:
            print(error)
    sys.exit(0)
print(os.wait()[1])
print(parents.classify_one("mednist", b"HeadCT").label)
"""

_FORKED_BEFORE_A_CALL = """
import os, sys
from medserve.client import Client

client = Client(sys.argv[1])
if os.fork() == 0:
    print(client.classify_one("mednist", b"CXR").label)
    sys.exit(0)
print(os.wait()[1])
sys.stdout.flush()
print(client.classify_one("mednist", b"HeadCT").label)
"""


def run(program: str, fake: FakeGateway) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program, fake.address],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout.splitlines()


@linux
@pytest.mark.process
def test_a_process_that_is_forked_after_a_call_is_told(fake: FakeGateway) -> None:
    first, *refusals, ended, last = run(_FORKED_AFTER_A_CALL, fake)
    assert (first, ended, last) == ("Hand", "0", "HeadCT")
    assert len(refusals) == 2
    assert all("spawn" in refusal for refusal in refusals)


@linux
@pytest.mark.process
def test_a_process_that_is_forked_before_any_call_has_its_own_connection(
    fake: FakeGateway,
) -> None:
    assert run(_FORKED_BEFORE_A_CALL, fake) == ["CXR", "0", "HeadCT"]
