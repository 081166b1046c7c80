"""Prove the images:  python scripts/smoke_images.py [--store model_store]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medserve.errors import MedserveError
from scripts.smoke import smoke


def main() -> int:
    """Start the compose project on free ports, ask every model, stop it while it works."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    options = parser.parse_args()
    try:
        smoke(options.store, lambda line: print(line, flush=True))
    except MedserveError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
