"""What is written about an imported model: a card to be completed, and what was compared."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medserve.results.files import overlay
from medserve.results.segmentation import Segmentation
from medserve.spec import ModelSpec
from medserve.spec.values import ValueSpec

if TYPE_CHECKING:
    from medserve.importing.golden import GoldenVolume
    from medserve.importing.package import Agreement, Imported
    from medserve.importing.source import Described, Source

__all__ = ["card", "card_of_pictures", "write", "write_pictures"]

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "td,th{text-align:left;padding:.2rem 1rem .2rem 0}img{max-width:100%}"
)


def card(source: Source, spec: ModelSpec, agreements: Sequence[Agreement]) -> str:
    """Return a model card with what is known, and the questions that only its maker can answer."""
    about = "voxels of the golden volume with the label"
    return _card(spec, source.origin, source.licence, agreements, about)


def card_of_pictures(
    source: Described, spec: ModelSpec, agreements: Sequence[Agreement], compared: str
) -> str:
    """Return the same of a network for pictures; `compared` are these, their labels or pixels."""
    about = f"compared {compared} with the label"
    if spec.has_independent_labels:
        about = "answers, present or absent, for each label of the compared pictures"
    if spec.values:
        about = "numbers of the compared pictures, within a thousandth of their range,"
    return _card(spec, source.origin, source.licence, agreements, about)


def _card(
    spec: ModelSpec, origin: str, licence: str, agreements: Sequence[Agreement], about: str
) -> str:
    columns = [["id", "---", *map(str, range(len(spec.labels)))], ["label", "---", *spec.labels]]
    if spec.values:
        columns = [[key, "---", *map(_text_of(key), spec.values)] for key in _OF_VALUES]
    if spec.has_independent_labels:
        thresholds = map(str, spec.classifier.thresholds(len(spec.labels)))
        columns.append(["present from a probability of", "---", *thresholds])
    labels = "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    figures = "\n".join(
        f"| {each.engine} | {each.share:.4%} | {each.largest:.1e} |" for each in agreements
    )
    return f"""# {spec.name}: {spec.title}

Research use, not a medical device.

Imported from another tool: {origin}.

## Intended use

Not stated by its files. Say here what the model is for, on which patients, scanners and sequences
it was trained, and what it must not be used for.

## {"Values" if spec.values else "Labels"}

{labels}

## Licence

Of weights and training data, as the files state it: {licence}. Check it before you pass
the archive on.

## Import

Share of {about} that the network gives as it was read, and the largest
difference of a score:

| engine | same answer | largest difference |
|---|---|---|
{figures}

## Limits

Not known: training data, metrics on unseen cases, behaviour on foreign images. The platform does
not flag inputs that are unlike the training data of an imported model.
"""


_OF_VALUES = ("name", "unit", "unit_name", "offset", "scale", "range")


def _text_of(key: str) -> Callable[[ValueSpec], str]:
    """Return how a member of a value stands in the card."""

    def text(value: ValueSpec) -> str:
        found = getattr(value, key)
        return "not stated" if found is None else str(found)

    return text


def write(
    path: Path,
    source: Source,
    spec: ModelSpec,
    outcome: Imported,
    volume: GoldenVolume,
    segmentation: Segmentation,
) -> None:
    """Write the report of an import as one HTML file."""
    golden = "a computed volume, nobody's image" if volume.is_computed else "the example given"
    found = "".join(
        f"<tr><td>{html.escape(each.label)}</td><td>{each.voxels}</td></tr>"
        for each in segmentation.measures
    )
    picture = overlay.montage(volume.volumes[0], segmentation)
    body = f"""<h2>Labels on that volume</h2>
<table><tr><th>label</th><th>voxels</th></tr>{found}</table>
<p><img alt="Slices of the volume with its mask" src="{_data_uri(picture)}"></p>
<p>A usual volume of this model takes about {-(-outcome.peak_bytes // 2**20)} MiB.</p>"""
    _write(path, spec, (source.origin, source.licence), outcome, golden, body)


def write_pictures(
    path: Path,
    source: Described,
    spec: ModelSpec,
    outcome: Imported,
    made: str,
    found: Sequence[tuple[bytes, str]],
) -> None:
    """Write the report of an import of a network for pictures as one HTML file.

    Args:
        path: Of the file.
        source: What was imported.
        spec: Its description.
        outcome: What was compared.
        made: Whether pictures were computed or given.
        found: Each picture as PNG, and what the network as it was read says of it.
    """
    rows = "".join(
        f'<tr><td><img alt="" style="max-width:12rem" src="{_data_uri(picture)}"></td>'
        f"<td>{html.escape(said)}</td></tr>"
        for picture, said in found
    )
    body = f"""<h2>Answers</h2>
<table><tr><th>picture</th><th>answer</th></tr>{rows}</table>"""
    told = f"{len(found)} {made} pictures"
    _write(path, spec, (source.origin, source.licence), outcome, told, body)


def _write(
    path: Path,
    spec: ModelSpec,
    origin: tuple[str, str],
    outcome: Imported,
    golden: str,
    body: str,
) -> None:
    rows = "".join(
        f"<tr><td>{each.engine}</td><td>{each.share:.4%}</td><td>{each.largest:.1e}</td>"
        f"<td>{each.seconds:.3g} s</td></tr>"
        for each in outcome.agreements
    )
    made_by, licence = map(html.escape, origin)
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(spec.name)}: import</title>
<style>{_STYLE}</style></head><body>
<h1>{html.escape(spec.name)} {html.escape(spec.version)}</h1>
<p>{made_by}. Licence: {licence}.</p>
<h2>Engines</h2>
<p>Compared with the network as it was read, on {golden}. The archive uses {outcome.engine}.</p>
<table><tr><th>engine</th><th>same answer</th><th>largest difference of a score</th>
<th>time of all</th></tr>{rows}</table>
{body}
</body></html>
""",
        encoding="utf-8",
    )


def _data_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
