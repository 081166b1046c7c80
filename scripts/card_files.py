"""Write the table of files into model cards, from the files themselves.

    python scripts/card_files.py models/mednist models/mednist/variants/svm

Without folders, the cards of all rooms and variants are brought up to date.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import models
from medserve.errors import ConfigError

__all__ = ["main", "table", "with_table"]

_HEAD = ("| file | bytes | SHA-256 |", "|---|---|---|")
_TABLE = re.compile(re.escape("\n".join(_HEAD)) + r"\n(?:\|.*\n)*")


def table(weights: Path) -> str:
    """Return the table of the files in a folder `weights`: name, bytes and SHA-256."""
    rows = []
    for path in sorted(weights.iterdir()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        rows.append(f"| `weights/{path.name}` | {len(content):,} | `{digest}` |")
    return "\n".join([*_HEAD, *rows, ""])


def with_table(card: str, weights: Path) -> str:
    """Return the text of a card with its table of files brought up to date.

    Raises:
        ConfigError: the card has no table of files under its heading `## Files`.
    """
    text, heading, files = card.partition("\n## Files\n")
    if not _TABLE.search(files):
        raise ConfigError(
            f"{weights.parent / 'README.md'} has no table of files; write the heading '## Files' "
            f"and below it the two lines {_HEAD[0]} and {_HEAD[1]}"
        )
    return text + heading + _TABLE.sub(lambda _: table(weights), files, count=1)


def main(arguments: list[str]) -> None:
    """Rewrite the cards of the given rooms, or of all."""
    versions = [(name, each) for name in models.names() for each in ("", *models.variants(name))]
    for room in [Path(each) for each in arguments] or [models.room(*each) for each in versions]:
        card = room / "README.md"
        updated = with_table(card.read_text(encoding="utf-8"), room / "weights")
        card.write_text(updated, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
