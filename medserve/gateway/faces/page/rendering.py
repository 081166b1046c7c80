"""Pages from templates, in the visitor's language; the static files have unchanging addresses.

The texts of a language are one JSON file in `texts/`, with the same keys as the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from medserve import __version__

__all__ = ["LANGUAGES", "Templates", "Texts", "chosen_language", "texts_in"]

LANGUAGES: Mapping[str, str] = {"en": "English", "fr": "Français", "ru": "Русский"}
_DEFAULT_LANGUAGE = "en"
_LANGUAGE_COOKIE = "medserve_language"

_THEMES = ("light", "dark")
_THEME_COOKIE = "medserve_theme"
_YEAR_S = 365 * 24 * 3600


@dataclass(frozen=True)
class Texts:
    """The texts of one language."""

    language: str
    by_key: Mapping[str, str]

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key, with `{name}` replaced."""
        return self.by_key[key].format(**values) if values else self.by_key[key]

    def title(self, title: str) -> str:
        """A model's title in this language; as its archive has it where nobody translated it."""
        return self.by_key.get(f"title.{title}", title)

    def under(self, *prefixes: str) -> dict[str, str]:
        """The texts whose keys start with one of these: what a script needs."""
        return {key: text for key, text in self.by_key.items() if key.startswith(prefixes)}


@cache
def texts_in(language: str) -> Texts:
    """The texts of a known language."""
    raw = (files(__package__) / "texts" / f"{language}.json").read_text(encoding="utf-8")
    return Texts(language, json.loads(raw))


def chosen_language(request: Request) -> str:
    """What the visitor asked for, now or before; else the best that their browser accepts."""
    for wish in (request.query_params.get("lang"), request.cookies.get(_LANGUAGE_COOKIE)):
        if wish is not None and wish in LANGUAGES:
            return wish
    return _accepted(request.headers.get("accept-language", "")) or _DEFAULT_LANGUAGE


class Templates:
    """Renders the templates of this package.

    Attributes:
        static: The folder of scripts and styles.
        digest: Part of their addresses; another when any of them changes.
    """

    def __init__(self) -> None:
        self.static = Path(str(files(__package__) / "static"))
        self.digest = _digest(self.static)
        self._environment = _environment()

    @cached_property
    def viewer(self) -> str | None:
        """Address of the volume viewer; None where it was not installed."""
        return self._vendored("niivue-*.js")

    @cached_property
    def api_reader(self) -> tuple[str, str] | None:
        """Addresses of script and style of Swagger UI; None where it was not installed."""
        script, style = self._vendored("swagger-ui-*.js"), self._vendored("swagger-ui-*.css")
        return (script, style) if script and style else None

    def _vendored(self, pattern: str) -> str | None:
        found = sorted((self.static / "vendor").glob(pattern))
        return f"/static/{self.digest}/vendor/{found[-1].name}" if found else None

    def render(
        self,
        request: Request,
        template: str,
        values: Mapping[str, Any] | None = None,
        status: int = 200,
    ) -> HTMLResponse:
        """A page in the visitor's language and colours."""
        language = chosen_language(request)
        theme = request.cookies.get(_THEME_COOKIE)
        html = self._environment.get_template(template).render(
            t=texts_in(language),
            language=language,
            languages=LANGUAGES,
            theme=theme if theme in _THEMES else "",
            path=request.url.path,
            static=f"/static/{self.digest}",
            visitor=getattr(request.state, "visitor", ""),
            version=__version__,
            **(values or {}),
        )
        response = HTMLResponse(html, status)
        response.headers["vary"] = "accept-language, cookie"
        if request.query_params.get("lang") == language:
            response.set_cookie(_LANGUAGE_COOKIE, language, max_age=_YEAR_S, samesite="lax")
        return response


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _digest(folder: Path) -> str:
    """Names and contents of all files, shortened; they do not change while a server runs."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


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
