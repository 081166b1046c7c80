#!/usr/bin/env python3
"""grpcurl's command line, carried out by `buf curl`: the same JSON, protoset and wire.

Put on PATH under the name `grpcurl`; knows the flags that the pages use and refuses any other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Translate, run, pass the exit code on."""
    options = _parser().parse_args()
    scheme = "http" if options.plaintext else "https"
    command = [os.environ["BUF"], "curl", "--protocol", "grpc"]
    if options.plaintext:
        command += ["--http2-prior-knowledge"]
    for flag, value in (("--cacert", options.cacert), ("--servername", options.authority)):
        command += [flag, value] if value else []
    for header in options.headers:
        command += ["-H", header]
    with tempfile.TemporaryDirectory() as folder:
        command += _schema(options, Path(folder))
        if options.symbol == "list":
            flag, url = "--list-services", f"{scheme}://{options.address}"
            if options.of:
                flag, url = "--list-methods", f"{url}/{options.of}"
            return subprocess.run([*command, flag, url]).returncode
        data = {"@": "@-", None: "{}"}.get(options.data, options.data)
        url = f"{scheme}://{options.address}/{options.symbol}"
        return subprocess.run([*command, "-d", data, url]).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true")
    parser.add_argument("-protoset")
    parser.add_argument("-proto")
    parser.add_argument("-import-path", action="append", default=[], dest="paths")
    parser.add_argument("-max-msg-sz", type=int)  # buf has no limit of its own
    parser.add_argument("-d", dest="data")
    parser.add_argument("-H", action="append", default=[], dest="headers")
    parser.add_argument("-cacert")
    parser.add_argument("-authority")
    parser.add_argument("address")
    parser.add_argument("symbol")
    parser.add_argument("of", nargs="?")
    return parser


def _schema(options: argparse.Namespace, folder: Path) -> list[str]:
    """Where the contracts come from: a protoset, proto files, or the server's reflection."""
    if options.protoset:
        return ["--schema", f"{options.protoset}#format=binpb"]
    if not options.proto:
        return []
    protoset = folder / "protoset"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_out={protoset}"]
    command += ["--include_imports", *(f"-I{path}" for path in options.paths), options.proto]
    subprocess.run(command, check=True)
    return ["--schema", f"{protoset}#format=binpb"]


if __name__ == "__main__":
    sys.exit(main())
