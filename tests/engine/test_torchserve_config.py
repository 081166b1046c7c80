"""What TorchServe is told before it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import models
from medserve.engine.environment import CANCELLED, UPLOADS
from medserve.engine.torchserve import config
from medserve.engine.torchserve.config import (
    WORKER_START,
    EngineSettings,
    engine_environment,
    java_command,
    write_run_dir,
)
from medserve.engine.torchserve.java import Java
from medserve.engine.torchserve.ports import Ports
from medserve.errors import ConfigError

_PORTS = Ports(grpc=1, management=2, metrics=3)


def written(folder: Path, **changes: object) -> dict[str, str]:
    """The properties that TorchServe would read."""
    settings: dict[str, object] = {
        "host": "127.0.0.1",
        "ports": _PORTS,
        "archives": ["tiny-1.0.mar", "tiny-1.1.mar"],
        "max_message_bytes": 2**26,
        "token_auth": False,
    }
    write_run_dir(folder, EngineSettings(**(settings | changes)))  # type: ignore[arg-type]
    lines = (folder / "config.properties").read_text(encoding="ascii").splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_a_folder_without_exec_is_named_unless_the_libraries_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    libraries = tmp_path / "jni"
    libraries.mkdir()
    monkeypatch.setattr(config, "_NATIVE_SOCKETS", libraries)
    with pytest.raises(ConfigError, match=rf"{tmp_path.parent}, which is mounted noexec; .*TMPDIR"):
        written(tmp_path)
    (libraries / "libnetty_transport_native_epoll_x86_64.so").touch()  # as in the images
    assert written(tmp_path)


def test_a_folder_whose_path_is_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    longest = 107 - len("/run/tmp/.ts.sock.65535")  # 108 bytes and a zero at the end, unix(7)
    fitting = tmp_path / ("x" * (longest - len(str(tmp_path)) - 1)) / "run"
    fitting.mkdir(parents=True)
    assert written(fitting)
    beyond = fitting.parent.with_name(fitting.parent.name + "x") / "run"
    beyond.mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"at most {longest} bytes, got {longest + 1}.*TMPDIR"):
        written(beyond)


def test_only_the_inference_api_follows_the_host(tmp_path: Path) -> None:
    properties = written(tmp_path, host="0.0.0.0")
    assert properties["grpc_inference_address"] == "0.0.0.0"
    assert properties["grpc_management_address"] == "127.0.0.1"
    assert properties["metrics_address"] == "http://127.0.0.1:3"


def test_no_connection_to_the_engine_ends_before_the_longest_answer(tmp_path: Path) -> None:
    within = written(tmp_path)
    assert not [each for each in within if "connection_age" in each]  # of a gateway beside it
    beyond = written(tmp_path, host="0.0.0.0")
    grace_s = int(beyond["grpc_inference_max_connection_age_grace_ms"]) / 1000
    longest = max(models.spec(name).serving.response_timeout for name in models.names())
    assert grace_s >= 4 * longest  # others wait before it


def test_http_apis_are_sockets_in_the_private_folder(tmp_path: Path) -> None:
    properties = written(tmp_path)
    assert properties["management_address"] == f"unix:{tmp_path}/tmp/m.sock"
    assert properties["inference_address"] == f"unix:{tmp_path}/tmp/i.sock"


def test_nothing_can_be_loaded_but_the_listed_archives(tmp_path: Path) -> None:
    properties = written(tmp_path)
    assert properties["load_models"] == "tiny-1.0.mar,tiny-1.1.mar"
    assert properties["enable_model_api"] == "false"
    assert properties["enable_envvars_config"] == "false"
    assert "://" not in properties["allowed_urls"]


@pytest.mark.parametrize(("token_auth", "disabled"), [(True, "false"), (False, "true")])
def test_token_authorization_is_what_was_decided(
    tmp_path: Path, token_auth: bool, disabled: str
) -> None:
    assert written(tmp_path, token_auth=token_auth)["disable_token_authorization"] == disabled


def test_requests_and_answers_have_the_same_limit(tmp_path: Path) -> None:
    properties = written(tmp_path)
    assert properties["max_request_size"] == properties["max_response_size"] == str(2**26)


def test_tls_needs_no_more_than_the_two_files(tmp_path: Path) -> None:
    properties = written(tmp_path, certificate=tmp_path / "c.pem", private_key=tmp_path / "k.pem")
    assert properties["enable_grpc_ssl"] == "true"
    assert properties["certificate_file"] == str((tmp_path / "c.pem").resolve())


def test_a_folder_with_any_name_survives_the_properties_format(tmp_path: Path) -> None:
    folder = tmp_path / "Pr\u00fcfung \\ 1"
    folder.mkdir()
    assert written(folder)["model_store"] == f"{tmp_path}/Pr\\u00fcfung \\\\ 1/store"


def test_a_line_break_cannot_smuggle_in_a_property(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without line breaks"):
        written(tmp_path, archives=["a.mar\nenable_model_api=true"])


def test_logs_are_quiet_and_go_to_standard_output(tmp_path: Path) -> None:
    written(tmp_path)
    root = ElementTree.parse(tmp_path / "log4j2.xml").getroot()
    appenders = root.find("Appenders")
    assert appenders is not None
    assert [appender.tag for appender in appenders] == ["Console"]
    assert [logger.get("level") for logger in root.iter("Root")] == ["warn"]


def test_metrics_name_what_the_handlers_report(tmp_path: Path) -> None:
    from handlers import torchserve

    written(tmp_path)
    metrics = yaml.safe_load((tmp_path / "metrics.yaml").read_text())["model_metrics"]
    named = {kind: [metric["name"] for metric in metrics[kind]] for kind in metrics}
    assert named == {"counter": [torchserve.ITEMS], "histogram": [torchserve.REQUEST_SECONDS]}


def test_no_snapshots_is_the_first_option(tmp_path: Path) -> None:
    pytest.importorskip("ts", reason="needs the serve extra")
    command = java_command(Java(Path("java"), 17, "PATH"), tmp_path, 2**26)
    after = command[command.index("org.pytorch.serve.ModelServer") + 1 :]
    assert after[0] == "-ncs"


@pytest.mark.parametrize(("version", "wanted"), [(17, False), (21, False), (25, True)])
def test_a_new_java_is_told_that_native_access_is_wanted(
    tmp_path: Path, version: int, wanted: bool
) -> None:
    pytest.importorskip("ts", reason="needs the serve extra")
    command = java_command(Java(Path("java"), version, "PATH"), tmp_path, 2**26)
    assert ("--enable-native-access=ALL-UNNAMED" in command) is wanted


def test_the_heap_grows_with_the_largest_message(tmp_path: Path) -> None:
    pytest.importorskip("ts", reason="needs the serve extra")
    java = Java(Path("java"), 17, "PATH")
    assert "-Xmx1280m" in java_command(java, tmp_path, 64 * 2**20)
    assert "-Xmx5120m" in java_command(java, tmp_path, 256 * 2**20)


def test_workers_get_their_threads_and_no_secrets(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "PYTHONPATH": "/somewhere",
        "MEDSERVE_TOKEN": "k3y",
        "AWS_SECRET_ACCESS_KEY": "k3y",
        "DB_PASSWORD": "k3y",
    }
    environment = engine_environment(given, tmp_path, threads=3, max_message_bytes=2**26)
    assert "k3y" not in environment.values()
    assert environment["PYTHONPATH"] == str(WORKER_START)  # it stands before the archive's own code
    assert [each.name for each in WORKER_START.glob("*.*")] == ["sitecustomize.py"]
    assert environment["PATH"] == "/bin"
    assert environment["MEDSERVE_ENGINE_THREADS"] == environment["OMP_NUM_THREADS"] == "3"
    assert int(environment["MEDSERVE_MAX_RESPONSE_BYTES"]) < 2**26


@pytest.mark.usefixtures("engine_installed")
def test_a_worker_imports_torch_only_where_its_model_does(tmp_path: Path) -> None:
    program = """if True:
        import sys
        import ts.model_service_worker
        from ts.protocol.otf_message_handler import create_predict_response

        def answer(value):
            return bytes(create_predict_response([value], {0: "id"}, "OK", 200))

        assert answer(b"answer").count(b"answer") == 1
        assert answer("answer").count(b"answer") == 1
        assert answer([1.5]).count(b"1.5") == 1
        assert "torch" not in sys.modules
        import torch
        assert torch.ones(1).sum() == 1
        assert answer(torch.ones(1)).count(b"data.pkl")
    """
    environment = engine_environment(os.environ, tmp_path, threads=1, max_message_bytes=2**26)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.parametrize(
    ("variable", "folder"),
    [("MEDSERVE_CANCELLED_DIR", CANCELLED), ("MEDSERVE_UPLOAD_DIR", UPLOADS)],
)
def test_workers_and_a_gateway_beside_them_share_folders(
    tmp_path: Path, variable: str, folder: str
) -> None:
    own = engine_environment({}, tmp_path, threads=1, max_message_bytes=2**26)
    assert own[variable] == str(tmp_path / folder)
    given = {variable: "/shared"}  # of a gateway in another container
    shared = engine_environment(given, tmp_path, threads=1, max_message_bytes=2**26)
    assert shared[variable] == "/shared"
