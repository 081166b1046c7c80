"""The page's texts in its languages: one JSON file each in `texts/`, with the same keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.requests import Request

__all__ = ["COOKIE", "LANGUAGES", "Texts", "chosen", "load"]

COOKIE = "medserve_language"
LANGUAGES: Mapping[str, str] = {"en": "English", "fr": "Français", "ru": "Русский"}
_DEFAULT = "en"


@dataclass(frozen=True)
class Texts:
    """The texts of one language."""

    language: str
    by_key: Mapping[str, str]

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key, with `{name}` replaced."""
        return self.by_key[key].format(**values) if values else self.by_key[key]

    def under(self, *prefixes: str) -> dict[str, str]:
        """The texts whose keys start with one of these: what a script needs."""
        return {key: text for key, text in self.by_key.items() if key.startswith(prefixes)}


@cache
def load(language: str) -> Texts:
    """The texts of a known language."""
    raw = (files(__package__) / "texts" / f"{language}.json").read_text(encoding="utf-8")
    return Texts(language, json.loads(raw))


def chosen(request: Request) -> str:
    """What the visitor asked for, now or before; else the best that their browser accepts."""
    for wish in (request.query_params.get("lang"), request.cookies.get(COOKIE)):
        if wish is not None and wish in LANGUAGES:
            return wish
    return _accepted(request.headers.get("accept-language", "")) or _DEFAULT


def _accepted(header: str) -> str | None:
    """The known language with the highest weight in an Accept-Language header."""
    best: tuple[float, str | None] = (0.0, None)
    for part in header[:1000].split(","):
        name, _, parameter = part.strip().partition(";")
        language = name.strip().lower().partition("-")[0]
        weight = _weight(parameter)
        if language in LANGUAGES and weight > best[0]:
            best = (weight, language)
    return best[1]


def _weight(parameter: str) -> float:
    if not parameter.strip():
        return 1.0
    name, _, value = parameter.partition("=")
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0
