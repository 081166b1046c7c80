"""TLS against a real gRPC server with a certificate made for the test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from medserve.client import Client, TlsConfig
from medserve.errors import ServerUnreachableError
from tests.client.fake_server import FakeServer, serving

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    folder.mkdir(exist_ok=True)
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return chain, key


def test_trusted_server_answers_over_tls(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "server")
    identity = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
    tls = TlsConfig(ca_file=chain, server_name="localhost")
    with serving(FakeServer(), tls=identity) as fake, Client(fake.address, tls=tls) as client:
        assert client.classify_one("mednist", b"Hand").label == "Hand"


def test_server_of_another_authority_is_refused(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "server")
    stranger, _ = certificate(tmp_path, "stranger")
    identity = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
    tls = TlsConfig(ca_file=stranger, server_name="localhost")
    with (
        serving(FakeServer(), tls=identity) as fake,
        Client(fake.address, tls=tls) as client,
        pytest.raises(ServerUnreachableError, match="TLS"),
    ):
        client.ping()


def test_client_proves_itself_with_its_own_certificate(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "server")
    own_chain, own_key = certificate(tmp_path, "client")
    identity = grpc.ssl_server_credentials(
        [(key.read_bytes(), chain.read_bytes())], own_chain.read_bytes(), require_client_auth=True
    )
    tls = TlsConfig(chain, own_chain, own_key, server_name="localhost")
    with serving(FakeServer(), tls=identity) as fake, Client(fake.address, tls=tls) as client:
        assert client.ping() == "Healthy"
