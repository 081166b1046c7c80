"""Ports are checked before Java starts, and named when they are taken."""

from __future__ import annotations

import socket
from dataclasses import astuple

import pytest

from medserve.engine.torchserve.ports import (
    Ports,
    choose_ports,
    is_loopback,
    reachable_host,
    resolve,
)
from medserve.errors import ConfigError


@pytest.mark.loopback
def test_zeros_become_different_free_ports() -> None:
    chosen = astuple(choose_ports("127.0.0.1", Ports()))
    assert len(set(chosen)) == 3
    assert all(port > 0 for port in chosen)


@pytest.mark.loopback
def test_a_free_port_that_was_asked_for_is_kept() -> None:
    free = choose_ports("127.0.0.1", Ports()).grpc
    assert choose_ports("127.0.0.1", Ports(grpc=free)).grpc == free


@pytest.mark.loopback
@pytest.mark.parametrize(("name", "option"), [("grpc", "--port"), ("metrics", "--metrics-port")])
def test_a_taken_port_is_named_with_the_option_that_changes_it(name: str, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 .* for {name} .*{option}"):
            choose_ports("127.0.0.1", Ports(**{name: port}))


@pytest.mark.loopback
def test_one_port_for_two_purposes_is_refused() -> None:
    free = choose_ports("127.0.0.1", Ports()).grpc
    with pytest.raises(ConfigError, match="cannot be used for"):
        choose_ports("127.0.0.1", Ports(grpc=free, management=free))


def test_a_name_becomes_the_address_that_torchserve_takes() -> None:
    assert is_loopback(resolve("localhost"))


def test_an_unknown_host_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"expected an address of this machine, got '256\.1\.1\.1'"
    ):
        resolve("256.1.1.1")


@pytest.mark.parametrize(
    ("listens_on", "reached_at"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("127.0.0.1", "127.0.0.1"), ("10.0.0.7", "10.0.0.7")],
)
def test_a_server_on_every_address_is_reached_on_loopback(listens_on: str, reached_at: str) -> None:
    assert reachable_host(listens_on) == reached_at


def test_loopback_is_more_than_one_address() -> None:
    assert is_loopback("127.0.0.9")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
