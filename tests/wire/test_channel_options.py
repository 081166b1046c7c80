"""Options of channels and servers have the names that gRPC reads: it ignores any other."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

_NAMED = re.compile(rb'"(grpc\.[a-z0-9_.]+)"')


def test_grpc_knows_every_option_that_is_set() -> None:
    core = find_spec("grpc._cython.cygrpc")
    assert core is not None
    assert core.origin is not None
    library = Path(core.origin).read_bytes()
    sources = (Path(__file__).parents[2] / "medserve").rglob("*.py")
    named = {name for path in sources for name in _NAMED.findall(path.read_bytes())}
    assert named
    assert {name for name in named if name not in library} == set()
