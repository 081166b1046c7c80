"""Whether the node on this machine makes progress: `python -m medserve.dicom.probe [PORT]`.

The health check of its container. Exit code 0, or 1 with one line that says why.
"""

from __future__ import annotations

import sys
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

__all__ = ["main"]

_TIMEOUT_S = 5.0
_PORT = "8012"  # of `--metrics`


def main(port: str = _PORT) -> int:
    """Probe once; the exit code."""
    opener = build_opener(ProxyHandler({}))  # this machine talks to itself
    try:
        with opener.open(f"http://127.0.0.1:{port}/healthz", timeout=_TIMEOUT_S) as answer:
            print(answer.read().decode().strip())
    except HTTPError as error:
        with error:
            print(error.read().decode().strip())
        return 1
    except OSError as error:
        print(f"the node does not answer: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
