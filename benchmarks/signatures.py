"""What it costs at the start of a server that an archive has to be signed.

    python -m benchmarks.signatures [--store model_store] [--rounds 20]

Times are of the processor, in milliseconds: other work on the machine adds nothing to them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.ratios import Spread
from medserve.archive.read import ArchiveInfo, intact_archive, verify_archive
from medserve.archive.trust import Trust, make_key_pair, read_private_key, sign_file
from medserve.archive.unpack import place_archive

__all__ = ["measure"]


def measure(archive: Path, scratch: Path, rounds: int) -> dict[str, Spread]:
    """Return milliseconds of each step with this archive."""
    copy = Path(shutil.copy(archive, scratch))
    key = scratch / f"{archive.stem}.pem"
    trust = Trust.read(make_key_pair(key))
    sign_file(copy, intact_archive(copy).sha256, read_private_key(key))
    info = verify_archive(copy, trust)
    verified = [_took_ms(lambda: verify_archive(copy, trust)) for _ in range(rounds)]
    unsigned = [_took_ms(lambda: intact_archive(copy)) for _ in range(rounds)]
    copied = [_took_ms(lambda: _copy(info, scratch / "placed.mar")) for _ in range(rounds)]
    return {
        "verified without a signature": Spread.of(unsigned),
        "verified with its signature": Spread.of(verified),
        "compared and copied for the engine": Spread.of(copied),
    }


def _copy(archive: ArchiveInfo, target: Path) -> None:
    place_archive(archive, target)
    target.unlink()


def _took_ms(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("outputs/signatures.json"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="medserve-signatures-") as folder:
        results = {
            archive.name: measure(archive, Path(folder), options.rounds)
            for archive in sorted(options.store.glob("*.mar"))
        }
    table = Table("archive", "step", "ms, median [least most]")
    for name, spreads in results.items():
        for what, spread in spreads.items():
            table.add_row(name, what, spread.format())
    Console().print(table)
    content = {
        "format": 1,
        "machine": describe_machine(),
        "rounds": options.rounds,
        "results": {
            name: {what: asdict(spread) for what, spread in spreads.items()}
            for name, spreads in results.items()
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
