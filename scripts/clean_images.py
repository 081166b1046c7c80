"""Remove what the other scripts made:  python scripts/clean_images.py."""

from __future__ import annotations

import sys

from docker.errors import APIError

from medserve.errors import MedserveError
from scripts import images


def main() -> int:
    """Remove containers of smoke tests and the images of this version; nothing else."""
    try:
        client = images.engine()
    except MedserveError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    mine = "com.docker.compose.project=medserve-smoke"
    for container in client.containers.list(all=True, filters={"label": mine}):
        container.remove(force=True)
        print(f"removed container {container.name}")
    for target in images.TARGETS:
        name = images.tag(target)
        try:
            client.images.remove(name)
            print(f"removed image {name}")
        except APIError as error:
            print(f"kept {name}: {error.explanation}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
