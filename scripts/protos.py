"""Generate `medserve/wire/` from `protos/`; `--help` shows the options."""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# protoc sees protos/X.proto as medserve/wire/X.proto, so that the generated imports need no repair.
PACKAGE = "medserve/wire"


def main() -> int:
    """Write the Python modules and, if asked, all contracts as one descriptor set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--protoset", type=Path, help="for grpcurl and buf, imports included")
    options = parser.parse_args()
    googleapis = sysconfig.get_path("purelib")  # where google/rpc/status.proto is installed
    command = [sys.executable, "-m", "grpc_tools.protoc"]
    command += [f"-I{PACKAGE}={ROOT / 'protos'}", f"-I{googleapis}"]
    command += [f"--python_out={options.folder}", f"--grpc_python_out={options.folder}"]
    for plugin in ("mypy", "mypy_grpc"):
        program = Path(sys.executable).with_name(f"protoc-gen-{plugin}")
        command += [f"--plugin=protoc-gen-{plugin}={program}"]
        command += [f"--{plugin}_out=quiet:{options.folder}"]
    if options.protoset:
        options.protoset.parent.mkdir(parents=True, exist_ok=True)
        command += ["--include_imports", "--include_source_info"]
        command += [f"--descriptor_set_out={options.protoset}"]
    names = [f"{PACKAGE}/{path.name}" for path in sorted((ROOT / "protos").glob("*.proto"))]
    return subprocess.run([*command, *names], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
