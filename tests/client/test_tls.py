"""TLS against a real gRPC server with a certificate made for the test."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from medserve.client import Client, TlsConfig
from medserve.errors import ServerUnreachableError
from tests.client.certificates import HAVE_OPENSSL, self_signed
from tests.client.fake_gateway import FakeGateway, serving

pytestmark = [
    pytest.mark.loopback,
    pytest.mark.process,
    pytest.mark.skipif(not HAVE_OPENSSL, reason="needs openssl"),
]


def test_trusted_server_answers_over_tls(tmp_path: Path) -> None:
    chain, key = self_signed(tmp_path, "server")
    identity = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
    tls = TlsConfig(ca_file=chain, server_name="localhost")
    with serving(FakeGateway(), tls=identity) as fake, Client(fake.address, tls=tls) as client:
        assert client.classify_one("mednist", b"Hand").label == "Hand"


def test_server_of_another_authority_is_refused(tmp_path: Path) -> None:
    chain, key = self_signed(tmp_path, "server")
    stranger, _ = self_signed(tmp_path, "stranger")
    identity = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
    tls = TlsConfig(ca_file=stranger, server_name="localhost")
    with (
        serving(FakeGateway(), tls=identity) as fake,
        Client(fake.address, tls=tls) as client,
        pytest.raises(ServerUnreachableError, match="TLS"),
    ):
        client.ping()


def test_client_proves_itself_with_its_own_self_signed(tmp_path: Path) -> None:
    chain, key = self_signed(tmp_path, "server")
    own_chain, own_key = self_signed(tmp_path, "client")
    identity = grpc.ssl_server_credentials(
        [(key.read_bytes(), chain.read_bytes())], own_chain.read_bytes(), require_client_auth=True
    )
    tls = TlsConfig(chain, own_chain, own_key, server_name="localhost")
    with serving(FakeGateway(), tls=identity) as fake, Client(fake.address, tls=tls) as client:
        assert client.ping() == "Healthy"


def test_plain_text_against_a_server_with_tls_is_told(tmp_path: Path) -> None:
    chain, key = self_signed(tmp_path, "server")
    identity = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
    with (
        serving(FakeGateway(), tls=identity) as fake,
        Client(fake.address) as client,
        pytest.raises(ServerUnreachableError, match="does it expect TLS"),
    ):
        client.ping()
