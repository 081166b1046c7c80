"""The environment is read in one place and refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from medserve.errors import ConfigError
from medserve.settings import Address, EngineKind, Settings


def test_an_empty_environment_means_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()
    assert str(Settings().address) == "127.0.0.1:8001"


def test_every_variable_is_taken(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    settings = Settings.from_environment(
        {
            "MEDSERVE_ADDRESS": "models.example:443",
            "MEDSERVE_TOKEN": "k3y",
            "MEDSERVE_CA_FILE": str(certificate),
            "MEDSERVE_STORE": str(tmp_path),
            "MEDSERVE_TRUST": str(certificate),
            "MEDSERVE_ENGINE_KIND": "direct",
        }
    )
    assert settings.engine_kind is EngineKind.DIRECT
    assert settings.address == Address("models.example", 443)
    assert (settings.token, settings.store) == ("k3y", tmp_path)
    assert (settings.ca_file, settings.trust) == (certificate, certificate)


def test_an_engine_of_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="MEDSERVE_ENGINE_KIND: expected torchserve or direct"):
        Settings.from_environment({"MEDSERVE_ENGINE_KIND": "triton"})


def test_an_empty_variable_counts_as_absent() -> None:
    assert Settings.from_environment({"MEDSERVE_TOKEN": " "}).token is None


@pytest.mark.parametrize("text", ["7070", "host", "host:", ":7070", "host:0", "host:65536", "::1"])
def test_a_bad_address_is_refused_by_the_name_of_its_variable(text: str) -> None:
    with pytest.raises(ConfigError, match="MEDSERVE_ADDRESS: expected host:port"):
        Settings.from_environment({"MEDSERVE_ADDRESS": text})


def test_a_missing_certificate_is_refused_before_any_connection(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MEDSERVE_CA_FILE: expected an existing file"):
        Settings.from_environment({"MEDSERVE_CA_FILE": str(tmp_path / "none.pem")})


def test_a_token_that_no_header_can_carry_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="MEDSERVE_TOKEN") as refusal:
        Settings.from_environment({"MEDSERVE_TOKEN": "gehe\u00efm"})
    assert "gehe" not in str(refusal.value)


def test_the_token_is_not_printed_with_the_settings() -> None:
    assert "k3y" not in repr(Settings(token="k3y"))


def test_an_ipv6_address_is_printed_the_way_grpc_reads_it() -> None:
    assert str(Address.parse("[::1]:7070")) == "[::1]:7070"
