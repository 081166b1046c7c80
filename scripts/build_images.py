"""Build the images:  python scripts/build_images.py [cpu gateway gpu]."""

from __future__ import annotations

import argparse
import sys

from medserve.errors import MedserveError
from scripts import images


def main() -> int:
    """Build each target and print what it weighs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=["cpu", "gateway"], metavar="TARGET")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--network", default="", help="of the build, where the default has no way out"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.targets) - set(images.TARGETS)):
        parser.error(f"expected targets out of {', '.join(images.TARGETS)}, got {unknown[0]}")
    try:
        client = images.engine()
        for target in options.targets:
            print(f"building {images.tag(target)}", flush=True)
            images.build(
                target, dict(each.split("=", 1) for each in options.build_arg), options.network
            )
            fact = images.facts(client, images.tag(target))
            print(f"{fact.tag}: {fact.size_mb:.0f} MB, user {fact.user}")
    except MedserveError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
