"""Pages from templates: every value is escaped, and the static files have unchanging addresses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from medserve import __version__
from medserve.gateway.faces.page import languages

__all__ = ["Templates"]

_THEMES = ("light", "dark")
_THEME_COOKIE = "medserve_theme"
_YEAR_S = 365 * 24 * 3600


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
        found = sorted((self.static / "vendor").glob("niivue-*.js"))
        return f"/static/{self.digest}/vendor/{found[-1].name}" if found else None

    def render(
        self,
        request: Request,
        template: str,
        values: Mapping[str, Any] | None = None,
        status: int = 200,
    ) -> HTMLResponse:
        """A page in the visitor's language and colours."""
        language = languages.chosen(request)
        theme = request.cookies.get(_THEME_COOKIE)
        html = self._environment.get_template(template).render(
            t=languages.load(language),
            language=language,
            languages=languages.LANGUAGES,
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
            response.set_cookie(languages.COOKIE, language, max_age=_YEAR_S, samesite="lax")
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
