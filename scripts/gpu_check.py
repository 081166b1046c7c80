"""Every archive on the CPU and on the GPU:  python scripts/gpu_check.py [--store model_store]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medserve.errors import MedserveError
from scripts.devices import compare


def main() -> int:
    """Say for every archive whether both devices agree, and how much faster the GPU is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    worst = 0
    archives = sorted(options.store.glob("*.mar"))
    if not archives:
        parser.error(f"expected model archives (*.mar) in {options.store}, there are none")
    for archive in archives:
        try:
            found = compare(archive, options.device, options.repeats)
        except MedserveError as error:
            print(f"{archive.stem}: FAILED: {error.message}")
            worst = 1
            continue
        first, second = found.reference, found.other
        print(
            f"{found.model}: {'same' if found.same else 'DIFFERENT'} (largest difference "
            f"{found.difference:.2g}, {found.agreement:.2%} same class); {first.device} "
            f"{first.engine} {1000 * first.median_s:.1f} ms, {second.device} {second.engine} "
            f"{1000 * second.median_s:.1f} ms, {found.speed_up:.2f} x"
        )
        worst = worst if found.same else 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
