"""Read the shell blocks of the page about grpcurl."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PAGE", "ROOT", "blocks", "script"]

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/call/grpcurl.md"
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"^(?:INFERENCE|MANAGEMENT|IMAGE)=\S+$", re.MULTILINE)


def blocks(text: str) -> str:
    """All shell blocks of a text as one script."""
    return "".join(_BLOCK.findall(text))


def script(*titles: str) -> str:
    """The blocks under these headings, after the names and the function that they need."""
    text = PAGE.read_text(encoding="utf-8")
    start, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    names = "\n".join(_NAME.findall(text))
    sections = {section.partition("\n")[0]: section for section in rest}
    return "\n".join([blocks(start), names, *(blocks(sections[title]) for title in titles)])
