"""Model cards and metrics for people's eyes; a card is foreign text and may not act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

__all__ = ["figures", "render_card"]

_DEEPEST = "6"


class _Renderer(RendererHTML):
    """Without pictures, which a card cannot bring along, and without inline styles."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """The alternative text in the place of a picture."""
        return self.renderInlineAsText(tokens[idx].children or [], options, env)


def render_card(card: str, level: int = 1) -> Markup:
    """A card as HTML whose own headings start below `level`.

    Raw HTML in it is shown, not obeyed; links lead out only by http, https and mailto.
    """
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
    tokens = parser.parse(card)
    _empty_headings_to_cells(tokens)
    for token in _all(tokens):
        if token.tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            token.tag = f"h{min(int(token.tag[1]) + level, int(_DEEPEST))}"
        if token.type == "link_open":
            _lead_out(token)
        style = token.attrs.pop("style", None)  # the content security policy forbids it
        if isinstance(style, str):
            token.attrSet("class", style.replace("text-align:", "align-"))
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _all(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all(token.children or ())


def _empty_headings_to_cells(tokens: Sequence[Token]) -> None:
    """A heading of a table that says nothing is none for a screen reader."""
    for opening, content, closing in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if opening.type == "th_open" and not content.content.strip():
            opening.tag = closing.tag = "td"


def _lead_out(token: Token) -> None:
    target = str(token.attrs.get("href", ""))
    if target.startswith(("https://", "http://", "mailto:")):
        token.attrSet("rel", "noopener noreferrer")
        token.attrSet("target", "_blank")
    else:  # a file of the repository, which is not here
        token.attrs.pop("href", None)


def figures(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The single numbers among a model's metrics, with their names, ready to be read."""
    found: list[tuple[str, str]] = []
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        interval = metrics.get(f"{name}_interval_95_exact", metrics.get(f"{name}_interval_95"))
        text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
        if _is_interval(interval):
            text += f" (95 %: {interval[0]:.5g} to {interval[1]:.5g})"
        found.append((name.replace("_", " "), text))
    return found


def _is_interval(value: object) -> TypeGuard[Sequence[float]]:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(x, int | float) for x in value)
    )
