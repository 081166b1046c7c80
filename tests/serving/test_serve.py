"""The real TorchServe: proven before it answers, drained when it stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import psutil
import pytest

from medserve.archive.read import inspect_archive
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.engine.torchserve.ports import Ports, choose_ports
from medserve.errors import ConfigError, ModelNotReadyError
from medserve.wire import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc
from tests.serving.conftest import TinyArchive
from tests.tiny_room import LABELS, bright_tile

pytestmark = pytest.mark.usefixtures("torchserve_alone")

_PATIENCE_S = 60.0  # for a busy machine; nothing waits for its end
_SLOW_HANDLER = '''"""Answers after two seconds, and says when it begins."""

import time

from handlers.classification import ClassificationHandler
from medserve.inference.fit import fit_grey


class TinyHandler(ClassificationHandler):
    """Slow once it is proven."""

    def to_network(self, source):
        return fit_grey(source, (64, 64))

    def handle(self, data, context):
        if any("request_id" in inputs for inputs in data):
            time.sleep(2)
        return super().handle(data, context)
'''


def predict(
    address: str, version: str = "", request_id: str = "", model: str = "tiny"
) -> dict[str, object]:
    """One request for the tile at the top left."""
    content = {"data": bright_tile(0), "transport": b"grpc"}
    if request_id:
        content["request_id"] = request_id.encode()
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(
            model_name=model, model_version=version, input=content
        )
        answer = json.loads(stub.Predictions(request, timeout=_PATIENCE_S).prediction)
    assert isinstance(answer, dict)
    return answer


def workers(server: Server, model: str = "tiny") -> list[dict[str, object]]:
    """TorchServe's own view of the workers of a model."""
    with grpc.insecure_channel(server.management_address) as channel:
        stub = management_pb2_grpc.ManagementAPIsServiceStub(channel)
        request = management_pb2.DescribeModelRequest(model_name=model)
        described = json.loads(stub.DescribeModel(request, timeout=_PATIENCE_S).msg)
    found = described[0]["workers"]
    assert isinstance(found, list)
    return found


def spoil_golden_output(checkout: Path) -> None:
    path = checkout / "models/tiny/weights/golden_output.npz"
    with np.load(path) as golden:
        arrays = dict(golden)
    arrays["logits"] = arrays["logits"] + 0.5
    np.savez(path, **arrays)


def make_slow(checkout: Path) -> None:
    (checkout / "handlers/tiny.py").write_text(_SLOW_HANDLER, encoding="utf-8")


def gone(pids: list[int], within_s: float = _PATIENCE_S) -> bool:
    """Whether all processes end within the time; a zombie has ended."""
    end = time.monotonic() + within_s
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid: int) -> list[int]:
    """The process and all that it started."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


class Served:
    """`medserve serve` as a process of its own, as an operator starts it."""

    def __init__(self, store: Path, folder: Path) -> None:
        self.ready_file = folder / "ready.json"
        options = ["--store", str(store), "--port", "0", "--metrics-port", "0", "--no-gateway"]
        command = [sys.executable, "-m", "medserve.cli.main", "serve", *options]
        self.process = subprocess.Popen(
            [*command, "--ready-file", str(self.ready_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TMPDIR": str(folder)},
        )

    def await_ready(self, within_s: float = 2 * _PATIENCE_S) -> dict[str, object]:
        """The addresses, once all models are proven."""
        end = time.monotonic() + within_s
        while time.monotonic() < end and self.process.poll() is None:
            if self.ready_file.exists():
                content = json.loads(self.ready_file.read_text())
                assert isinstance(content, dict)
                return content
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(f"not ready: {self.process.communicate()[0]}")


@pytest.fixture
def two_versions(tiny_archive: TinyArchive, short_path: Path) -> Path:
    store = short_path / "store"
    tiny_archive(store, "1.0")
    tiny_archive(store, "1.1")
    return store


@pytest.fixture
def slow(tiny_archive: TinyArchive, short_path: Path) -> Iterator[Served]:
    """`medserve serve` over a model that takes its time; killed if a test fails."""
    store = short_path / "store"
    tiny_archive(store, change=make_slow)
    served = Served(store, short_path)
    yield served
    if served.process.poll() is None:
        served.process.kill()
    served.process.communicate()


def test_every_ready_model_answers_rightly_through_grpc(torchserve: Server) -> None:
    answer = predict(torchserve.inference_address)
    assert (answer["status"], answer["label"]) == ("ok", LABELS[0])


def test_an_answer_names_the_archive_that_gave_it(torchserve: Server, served_store: Path) -> None:
    answer = predict(torchserve.inference_address)
    assert answer["archive_digest"] == inspect_archive(served_store / "tiny-1.0.mar").digest


def test_only_the_inference_port_would_leave_the_machine(torchserve: Server) -> None:
    assert torchserve.pid is not None
    listening = {
        each.laddr.ip
        for each in psutil.Process(torchserve.pid).net_connections(kind="tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_the_private_folder_is_closed_to_other_users(torchserve: Server) -> None:
    assert torchserve.run_dir is not None
    assert torchserve.run_dir.stat().st_mode & 0o077 == 0


def test_metrics_hold_the_request_time_and_the_items_after_a_request(torchserve: Server) -> None:
    predict(torchserve.inference_address)
    end = time.monotonic() + 10
    page = ""
    while "MedserveRequestSeconds_bucket" not in page and time.monotonic() < end:
        with urllib.request.urlopen(torchserve.metrics_url, timeout=5) as answer:
            page = answer.read().decode()
        time.sleep(0.1)
    lines = [line for line in page.splitlines() if 'ModelName="tiny"' in line]
    assert any(line.startswith("MedserveRequestSeconds_bucket") for line in lines)
    assert any(line.startswith("MedserveItems{") and 'Status="ok"' in line for line in lines)


def test_a_killed_worker_comes_back(torchserve: Server) -> None:
    victim = workers(torchserve, "ticker")[0]["pid"]
    assert isinstance(victim, int)
    os.kill(victim, signal.SIGKILL)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        now = workers(torchserve, "ticker")
        if now and now[0]["status"] == "READY" and now[0]["pid"] != victim:
            break
        time.sleep(0.2)
    assert predict(torchserve.inference_address, model="ticker")["label"] == LABELS[0]


def test_no_port_but_those_of_grpc_and_metrics_is_open(torchserve: Server) -> None:
    assert torchserve.pid is not None
    java = psutil.Process(torchserve.pid)
    listening = {
        each.laddr.port for each in java.net_connections("tcp") if each.status == psutil.CONN_LISTEN
    }
    named = (torchserve.inference_address, torchserve.management_address)
    ports = {int(address.rpartition(":")[2]) for address in named}
    assert listening == ports | {urlsplit(torchserve.metrics_url).port}


def test_a_second_start_on_used_ports_says_so_in_one_line(
    torchserve: Server, tiny_store: Path
) -> None:
    port = int(torchserve.inference_address.rpartition(":")[2])
    second = Server(ServerConfig(store=tiny_store, ports=Ports(grpc=port)))
    with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 cannot be used") as error:
        second.start()
    assert "\n" not in str(error.value)
    assert second.run_dir is None


@pytest.mark.parametrize("name", ["grpc", "management", "metrics"])
def test_a_port_that_is_taken_while_java_starts_is_named_too(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    free = choose_ports("127.0.0.1", Ports())
    with socket.create_server(("127.0.0.1", getattr(free, name))):
        answers = iter([free])
        monkeypatch.setattr(
            "medserve.engine.torchserve.lifecycle.choose_ports",
            lambda *given: next(answers, None) or choose_ports(*given),
        )
        with pytest.raises(ConfigError, match=f"port {getattr(free, name)} .* for {name}"):
            Server(ServerConfig(store=tiny_store, models=("tiny",))).__enter__()


def test_an_altered_golden_output_keeps_the_model_from_serving(
    tiny_archive: TinyArchive, short_path: Path
) -> None:
    tiny_archive(short_path / "store", change=spoil_golden_output)
    server = Server(ServerConfig(store=short_path / "store"))
    # The reason is the worker's end: a server that waits until its time is over gives another one.
    with pytest.raises(ModelNotReadyError, match=r"tiny 1\.0: its worker died") as error:
        server.__enter__()
    assert "logits" in str(error.value)
    assert "\n" not in str(error.value)
    assert server.pid is None


def test_two_versions_stand_side_by_side_and_the_highest_is_the_default(
    two_versions: Path,
) -> None:
    with Server(ServerConfig(store=two_versions)) as server:
        answers = [predict(server.inference_address, version) for version in ("", "1.0", "1.1")]
    assert [answer["version"] for answer in answers] == ["1.1", "1.0", "1.1"]


def test_the_default_version_can_be_an_older_one_and_workers_can_be_more(
    two_versions: Path,
) -> None:
    config = ServerConfig(store=two_versions, defaults={"tiny": "1.0"}, workers=2)
    with Server(config) as server:
        assert predict(server.inference_address)["version"] == "1.0"
        assert [worker["status"] for worker in workers(server)] == ["READY", "READY"]


def test_a_token_is_asked_for_where_it_is_wanted(tiny_store: Path) -> None:
    config = ServerConfig(store=tiny_store, models=("tiny",), token_auth=True)
    with Server(config) as server:  # proven with its own key
        assert server.key_file is not None
        assert server.key_file.stat().st_mode & 0o077 == 0
        with pytest.raises(grpc.RpcError) as refusal:
            predict(server.inference_address)
    assert "PERMISSION_DENIED" in str(refusal.value)


def test_a_server_with_tls_is_proven_over_tls(tiny_store: Path, short_path: Path) -> None:
    key, certificate = short_path / "key.pem", short_path / "certificate.pem"
    subject = ["-subj", "/CN=models.example", "-addext", "subjectAltName=DNS:models.example"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate of this test")
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    config = ServerConfig(
        store=tiny_store, models=("tiny",), certificate=certificate, private_key=key
    )
    with Server(config) as server, pytest.raises(grpc.RpcError):
        predict(server.inference_address)  # without TLS


def test_sigterm_lets_a_running_request_finish_and_leaves_nothing(
    slow: Served, short_path: Path
) -> None:
    address = str(slow.await_ready()["inference_address"])
    pids = family(slow.process.pid)
    answers: list[dict[str, object]] = []
    caller = threading.Thread(
        target=lambda: answers.append(predict(address, request_id="0a1b2c3d")), daemon=True
    )
    caller.start()
    time.sleep(0.8)  # the request is in the worker
    slow.process.send_signal(signal.SIGTERM)
    output, _ = slow.process.communicate(timeout=2 * _PATIENCE_S)
    caller.join(timeout=_PATIENCE_S)
    assert [answer["label"] for answer in answers] == [LABELS[0]], output
    assert slow.process.returncode == 0
    assert gone(pids)
    assert not list(short_path.glob("medserve-serve-*"))
    assert not slow.ready_file.exists()


def test_sigterm_while_starting_leaves_nothing_either(slow: Served, short_path: Path) -> None:
    end = time.monotonic() + 30
    while (
        not list(short_path.glob("medserve-serve-*/config.properties")) and time.monotonic() < end
    ):
        time.sleep(0.01)
    pids = family(slow.process.pid)
    slow.process.send_signal(signal.SIGTERM)
    slow.process.communicate(timeout=2 * _PATIENCE_S)
    assert slow.process.returncode == 130
    assert gone(pids)
    assert not list(short_path.glob("medserve-serve-*"))


def test_a_killed_parent_takes_java_and_the_workers_along(slow: Served) -> None:
    slow.await_ready()
    pids = family(slow.process.pid)
    assert len(pids) >= 3  # ours, Java, a worker
    slow.process.kill()
    slow.process.wait()
    assert gone(pids)
