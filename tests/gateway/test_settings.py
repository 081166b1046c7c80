"""Every setting of the gateway by flag and by variable, and no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medserve.cli.main import app
from medserve.errors import ConfigError
from medserve.gateway.settings import GatewaySettings, variable

_ROOT = Path(__file__).parent.parent.parent
_NAMES = [field.name for field in dataclasses.fields(GatewaySettings)]


def test_an_empty_environment_means_the_defaults() -> None:
    assert GatewaySettings.read({}, {}) == GatewaySettings(store=Path("model_store"))


def test_a_flag_beats_the_variable_and_the_variable_the_default() -> None:
    environment = {
        "MEDSERVE_GATEWAY_GRPC_PORT": "9001",
        "MEDSERVE_GATEWAY_HTTP_PORT": "9000",
        "MEDSERVE_GATEWAY_PAGE": "off",
        "MEDSERVE_GATEWAY_LOOK_S": "0.5",
        "MEDSERVE_GATEWAY_TOKENS_FILE": "/etc/tokens.json",
        "MEDSERVE_GATEWAY_MODELS": "mednist, tiny",
        "MEDSERVE_STORE": "/models",
    }
    settings = GatewaySettings.read({"grpc_port": 1, "host": None}, environment)
    assert (settings.grpc_port, settings.http_port, settings.metrics_port) == (1, 9000, 8002)
    assert (settings.page, settings.look_s) == (False, 0.5)
    assert settings.tokens_file == Path("/etc/tokens.json")
    assert settings.model_names == ("mednist", "tiny")
    assert settings.store == Path("/models")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDSERVE_GATEWAY_GRPC_PORT", "many"),
        ("MEDSERVE_GATEWAY_GRPC_PORT", "65536"),
        ("MEDSERVE_GATEWAY_PAGE", "perhaps"),
        ("MEDSERVE_GATEWAY_LOOK_S", "0"),
        ("MEDSERVE_GATEWAY_MAX_MESSAGE_MB", "4096"),
        ("MEDSERVE_GATEWAY_TLS_CERT", "/cert.pem"),
        ("MEDSERVE_GATEWAY_CLIENT_CA", "/ca.pem"),
        ("MEDSERVE_GATEWAY_TOKEN_FILE", "/misspelt"),
    ],
)
def test_a_value_that_cannot_work_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError):
        GatewaySettings.read({}, {name: value})


def test_what_kubernetes_tells_of_a_service_is_no_setting() -> None:
    told = {
        "MEDSERVE_GATEWAY_PORT": "tcp://10.0.0.1:8001",
        "MEDSERVE_GATEWAY_PORT_8001_TCP_ADDR": "10.0.0.1",
        "MEDSERVE_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "MEDSERVE_GATEWAY_SERVICE_PORT_GRPC": "8001",
    }
    assert GatewaySettings.read({}, told) == GatewaySettings.read({}, {})


def test_one_message_always_fits_into_the_memory() -> None:
    settings = GatewaySettings(max_message_mb=512, memory_mb=64)
    assert settings.limits.memory_bytes == settings.limits.message_bytes


@pytest.mark.parametrize("name", _NAMES)
def test_every_setting_is_a_flag_and_stands_in_the_documentation(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    shown = CliRunner().invoke(app, ["gateway", "--help"], env={"COLUMNS": "200"}).output
    assert flag in shown
    documented = (_ROOT / "docs/run/gateway.md").read_text(encoding="utf-8")
    assert f"| `{flag}` | `{variable(name)}` |" in documented


def test_without_its_packages_the_gateway_says_in_one_line_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from medserve.cli import gateway

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'medserve\[gateway\]'"):
        gateway.require_gateway()


def test_a_token_is_printed_once_and_an_audit_log_checked(tmp_path: Path) -> None:
    from medserve.gateway.core.tokens import TokenFile

    file = tmp_path / "tokens.json"
    made = CliRunner().invoke(
        app, ["token", "ward-7", "--file", str(file), "--model", "tiny", "--days", "30"]
    )
    assert made.exit_code == 0
    caller = TokenFile(file).caller(made.output.strip())
    assert caller is not None
    assert (caller.name, caller.scopes) == ("ward-7", frozenset({"tiny"}))
    log = tmp_path / "audit.jsonl"
    log.touch()
    assert "0 lines, intact" in CliRunner().invoke(app, ["audit", str(log)]).output


@pytest.mark.parametrize("service", ["GRPC", "HTTP", "METRICS"])
def test_what_kubernetes_tells_of_services_named_like_a_setting_is_no_setting(service: str) -> None:
    told = {
        f"MEDSERVE_GATEWAY_{service}_PORT": "tcp://10.0.0.1:8001",
        f"MEDSERVE_GATEWAY_{service}_PORT_8001_TCP": "tcp://10.0.0.1:8001",
        f"MEDSERVE_GATEWAY_{service}_PORT_8001_TCP_PROTO": "tcp",
        f"MEDSERVE_GATEWAY_{service}_SERVICE_HOST": "10.0.0.1",
        f"MEDSERVE_GATEWAY_{service}_SERVICE_PORT": "8001",
    }
    assert GatewaySettings.read({}, told) == GatewaySettings.read({}, {})
