"""A report that one HTML file carries: figures, tables and a gallery of the errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image as PillowImage

from medserve.spec import ModelSpec
from training.metrics import ClassificationMetrics, reliability

__all__ = ["Finding", "Findings", "confusion_png", "data_uri", "reliability_png", "write"]

_GALLERY = 60  # errors shown; more would make the file heavy
_ZOOM = 2  # screen pixels an image pixel


@dataclass(frozen=True, eq=False)
class Findings:
    """Every answer, beside the truth.

    Attributes:
        names: Path of each image, relative to the data folder.
        pixels: uint8 (N, H, W) or (N, H, W, 3).
        probabilities: float64 (N, K).
        novelty: float32 (N,).
        label_ids: int64 (N,), the truth.
    """

    names: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float64]
    novelty: npt.NDArray[np.float32]
    label_ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """One wrong answer in the gallery."""

    name: str
    picture: str  # data URI
    truth: str
    answer: str
    probabilities: tuple[tuple[str, float], ...]  # most probable first
    novelty: float


def write(
    out_dir: Path, spec: ModelSpec, measured: ClassificationMetrics, findings: Findings
) -> Path:
    """Write `report.html` with everything inside, and each figure as a PNG beside it."""
    figures = {
        "confusion_matrix": confusion_png(measured),
        "reliability": reliability_png(findings.probabilities, findings.label_ids),
        "novelty": _draw(lambda: _novelty(findings)),
    }
    for name, png in figures.items():
        (out_dir / f"{name}.png").write_bytes(png)
    wrong = np.flatnonzero(findings.probabilities.argmax(axis=1) != findings.label_ids)
    gallery = [_finding(spec, findings, int(i)) for i in wrong[:_GALLERY]]
    for number, i in enumerate(wrong[:_GALLERY]):
        (out_dir / "errors").mkdir(exist_ok=True)
        (out_dir / "errors" / f"{number:03d}.png").write_bytes(_png(findings.pixels[i]))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        spec=spec,
        metrics=measured,
        per_class=list(zip(measured.labels, measured.per_class, strict=True)),
        figures={name: data_uri(png) for name, png in figures.items()},
        gallery=gallery,
        unlike=int((findings.novelty > 1.0).sum()),
        reviewed=int((findings.probabilities.max(axis=1) < spec.classifier.review_below).sum()),
    )
    path = out_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _finding(spec: ModelSpec, findings: Findings, i: int) -> Finding:
    order = np.argsort(-findings.probabilities[i])
    return Finding(
        name=findings.names[i],
        picture=data_uri(_png(findings.pixels[i])),
        truth=spec.labels[findings.label_ids[i]],
        answer=spec.labels[order[0]],
        probabilities=tuple((spec.labels[k], float(findings.probabilities[i, k])) for k in order),
        novelty=float(findings.novelty[i]),
    )


def confusion_png(measured: ClassificationMetrics) -> bytes:
    """Counts of true and answered labels as a heat map, PNG."""
    return _draw(lambda: _confusion_matrix(measured))


def reliability_png(
    probabilities: npt.NDArray[np.float64], label_ids: npt.NDArray[np.int64]
) -> bytes:
    """What was promised against what was kept, for probabilities (N, K), PNG."""
    return _draw(lambda: _reliability(probabilities, label_ids))


def _confusion_matrix(measured: ClassificationMetrics) -> Figure:
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = figure.subplots()
    counts = np.array(measured.confusion)
    # Colour by share of the row, or the hits would leave every error as white as a zero.
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = list(measured.labels)
    sns.heatmap(
        np.sqrt(share),
        annot=counts,
        fmt="d",
        cmap="Blues",
        cbar=False,
        square=True,
        xticklabels=names,
        yticklabels=names,
        ax=axes,
    )
    axes.set(xlabel="answered", ylabel="true")
    axes.tick_params(axis="x", rotation=45)
    return figure


def _reliability(
    probabilities: npt.NDArray[np.float64], label_ids: npt.NDArray[np.int64]
) -> Figure:
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    bins = reliability(probabilities, label_ids)
    axes.plot((0, 1), (0, 1), color="0.7", linewidth=1)
    axes.plot([b.mean_probability for b in bins], [b.accuracy for b in bins], "o-")
    for each in bins:
        axes.annotate(
            f"{each.n}",
            (each.mean_probability, each.accuracy),
            textcoords="offset points",
            xytext=(-6, -12),
            ha="right",
            fontsize=8,
        )
    axes.set(xlabel="probability answered", ylabel="share that is right", xlim=(0, 1.02))
    axes.set_ylim(0, 1.05)
    return figure


def _novelty(findings: Findings) -> Figure:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(findings.novelty, bins=60, color="#4878b0")
    axes.axvline(1.0, color="#b04848", linewidth=1)
    axes.set(xlabel="novelty (above 1: unlike the training data)", ylabel="images", yscale="log")
    return figure


def _draw(make: Callable[[], Figure]) -> bytes:
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none"}):
        buffer = io.BytesIO()
        # No software version in the file: equal figures are equal bytes.
        make().savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    large = pixels.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
    buffer = io.BytesIO()
    PillowImage.fromarray(large).save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A picture as an address that carries it, for pages that one file holds."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
