"""`medserve keygen`, `sign` and `verify`: who vouches for an archive, and if it is unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medserve.archive.read import intact_archive, verify_archive
from medserve.archive.trust import Trust, make_key_pair, read_private_key, sign_file
from medserve.errors import ArchiveError, ConfigError

__all__ = ["keygen", "sign", "verify"]

_Archives = Annotated[list[Path], typer.Argument(metavar="ARCHIVE…", help="Archives (.mar).")]


def keygen(
    key: Annotated[Path, typer.Argument(metavar="KEY.pem", help="File for the private key.")],
) -> None:
    """Make a pair of keys (ECDSA on P-256): KEY.pem signs, KEY.pub.pem is for who verifies."""
    public = make_key_pair(key)
    typer.echo(f"{key}  private: sign with it, and show it to nobody")
    typer.echo(f"{public}  public: for MEDSERVE_TRUST and `medserve verify --trust`")


def sign(
    archives: _Archives,
    key: Annotated[Path, typer.Option(help="Private key (PEM) on P-256, P-384 or P-521.")],
) -> None:
    """Sign archives: NAME.mar.sig is written beside each; the archive stays as it is."""
    try:
        private = read_private_key(key)
    except TypeError:  # it is encrypted
        private = read_private_key(key, typer.prompt(f"password of {key}", hide_input=True))
    for archive in archives:
        typer.echo(str(sign_file(archive, intact_archive(archive).sha256, private)))


def verify(
    archives: _Archives,
    trust: Annotated[
        Path | None, typer.Option(help="Public keys (PEM) to trust (MEDSERVE_TRUST).")
    ] = None,
) -> None:
    """Check that archives are whole, and signed by a key that is trusted."""
    keys = Trust.from_environment() if trust is None else Trust.read(trust)
    if keys is None:
        raise ConfigError(
            "expected --trust KEYS.pem or MEDSERVE_TRUST, got neither; whether an archive is "
            "whole says `medserve inspect`"
        )
    refused = 0
    for archive in archives:
        try:
            info = verify_archive(archive, keys)
        except ArchiveError as error:
            refused += 1
            Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(error.message)
        else:
            typer.echo(
                f"{archive}  {info.name} {info.version}  {info.digest}  "
                f"signed by key {info.signed_by[:16]}"
            )
    if refused:
        raise typer.Exit(1)
