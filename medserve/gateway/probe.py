"""Whether the gateway on this machine serves: `python -m medserve.gateway.probe`.

The health check of its container. It reads the metrics, which need neither token nor certificate,
and asks that there are models and that each has answered its canary. Exit code 0 and one line
"ready: …", or 1 and one line that says which model is not.
"""

from __future__ import annotations

import re
import sys
from urllib.request import ProxyHandler, build_opener

from medserve.errors import MedserveError, ModelNotReadyError
from medserve.gateway.settings import GatewaySettings

__all__ = ["main", "served"]

_TIMEOUT_S = 5.0
_SAMPLE = re.compile(r"^medserve_gateway_model_ready\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def served(metrics: str) -> list[str]:
    """Name and version of every model, all of them ready.

    Raises:
        ModelNotReadyError: there is no model, or one is not ready.
    """
    names = []
    for sample in _SAMPLE.finditer(metrics):
        labels = dict(_LABEL.findall(sample["labels"]))
        name = f"{labels['model']} {labels['version']}"
        if float(sample["value"]) != 1:
            raise ModelNotReadyError(f"{name} has not answered its canary")
        names.append(name)
    if not names:
        raise ModelNotReadyError("the gateway has no model")
    return names


def main() -> int:
    """Probe once; the exit code."""
    try:
        url = f"http://127.0.0.1:{GatewaySettings.read().metrics_port}/metrics"
        opener = build_opener(ProxyHandler({}))  # this machine talks to itself
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            names = served(answer.read().decode())
    except MedserveError as error:
        print(f"not ready: {error.message}")
        return 1
    except OSError as error:
        print(f"not ready: the gateway does not answer: {error}")
        return 1
    print(f"ready: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
