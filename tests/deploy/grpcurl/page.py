"""Read the shell blocks of a page, and the bodies that its commands send."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PAGE", "ROOT", "blocks", "section"]

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "grpcurl.md"
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> str:
    """All shell blocks as one script."""
    return "".join(_BLOCK.findall(text))


def section(title: str) -> str:
    """The text under one heading, and what stands before the first."""
    start, *rest = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = [each for each in rest if each.startswith(title)]
    assert len(found) == 1, title
    return start + found[0]
