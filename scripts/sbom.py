"""Write the bill of materials of each image:  python scripts/sbom.py [cpu gateway gpu]."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from medserve.errors import MedserveError
from scripts import bill, images


def main() -> int:
    """Write build/sbom/<image>.cdx.json, CycloneDX 1.6, for every target named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("targets", nargs="*", default=["cpu", "gateway"])
    parser.add_argument("--out", type=Path, default=Path("build/sbom"))
    options = parser.parse_args()
    try:
        client = images.engine()
        options.out.mkdir(parents=True, exist_ok=True)
        for target in options.targets:
            name = images.tag(target)
            content = bill.bill_of(client, name)
            file = options.out / f"{name.split('/')[-1].replace(':', '-')}.cdx.json"
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            print(f"{name}: {len(content['components'])} components, {file}")
    except MedserveError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
