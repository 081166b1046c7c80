"""Which metrics and labels a PromQL expression asks for; enough for our own expressions."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Asked", "asked"]

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTED = re.compile(r"([a-zA-Z_:][\w:]*)?\{([^}]*)\}")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*(?!\w|\s*\()")
_WORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "bool", "le"}


@dataclass(frozen=True)
class Asked:
    """What must exist for the expression to give anything."""

    metrics: frozenset[str]
    labels: frozenset[str]


def asked(expression: str) -> Asked:
    """Metrics by name, labels by where they stand: in a selector or after `by`."""
    text = _TEXT.sub('""', expression)
    labels = {
        label
        for inside in (found[1] for found in _SELECTED.findall(text))
        for label in re.findall(r"(\w+)\s*[=!]", inside)
    }
    labels |= {
        each.strip() for inside in _GROUPED.findall(text) for each in inside.split(",") if each
    }
    text = _SELECTED.sub(lambda found: f"{found[1] or ''} ", _GROUPED.sub(" ", text))
    text = re.sub(r"\[[^\]]*\]", " ", text)  # ranges
    names = {each for each in _NAME.findall(text) if each not in _WORDS}
    return Asked(frozenset(names), frozenset(labels))
