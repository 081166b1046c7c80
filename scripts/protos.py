"""Generate `medserve/wire/` from `protos/`; `--help` shows the options."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
# protoc sees protos/X.proto as medserve/wire/X.proto, so that the generated imports need no repair.
FOREIGN = "medserve/wire"


def main() -> int:
    """Write the Python modules and, if asked, all contracts as one descriptor set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--protoset", type=Path, help="for grpcurl and buf, imports included")
    options = parser.parse_args()
    flags = [f"--{kind}_out={options.folder}" for kind in ("python", "grpc_python")]
    for plugin in ("mypy", "mypy_grpc"):
        program = Path(sys.executable).with_name(f"protoc-gen-{plugin}")
        flags += [f"--plugin=protoc-gen-{plugin}={program}"]
        flags += [f"--{plugin}_out=quiet:{options.folder}"]
    status = protoc(f"{FOREIGN}/v1", flags)
    if options.protoset and not status:
        options.protoset.parent.mkdir(parents=True, exist_ok=True)
        flags = ["--include_imports", "--include_source_info"]
        # Here our own contract keeps the folder of its package, which others import it from.
        status = protoc("medserve/v1", [*flags, f"--descriptor_set_out={options.protoset}"])
    return status


def protoc(own: str, flags: list[str]) -> int:
    """Compile all contracts; medserve's own are seen in the folder `own`."""
    folders = {FOREIGN: PROTOS, own: PROTOS / "medserve/v1"}
    command = [sys.executable, "-m", "grpc_tools.protoc", *flags]
    command += [f"-I{seen}={folder}" for seen, folder in folders.items()]
    command += [f"-I{PROTOS}"]  # has google/rpc/status.proto
    for seen, folder in folders.items():
        command += [f"{seen}/{path.name}" for path in sorted(folder.glob("*.proto"))]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
