"""`medserve init` writes a description to fill in; `medserve spec check` reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medserve.errors import ConfigError
from medserve.spec import ModelSpec, Task

__all__ = ["init", "spec"]

_VOLUMES = """\
# How a network for volumes is fed and what it answers; every key and its default:
# the reference of model-config.yaml in the documentation. Then:
#   medserve spec check FILE
#   medserve import onnx NETWORK.onnx --spec FILE      (or: torchscript NETWORK.pt)
minWorkers: 1
maxWorkers: 8
batchSize: 1 # a volume fills the cores by itself
responseTimeout: 600 # s for one volume
startupTimeout: 300 # s

medserve:
  name: my_model # letters, digits and _
  version: "1.0"
  title: What it finds
  task: volumes
  labels: [background, structure] # by number in the mask
  input:
    kinds: [nifti, dicom, npy]
    size: [96, 96, 96] # sides of the network's input; two for a network of planes
    channels: 1
    min_side: 1
    max_payload_bytes: 536870912
  volume:
    orientation: RAS # axes of the network's input; kji: those of the file, in that order
    spacing_mm: [1.0, 1.0, 1.0] # voxels that the network sees; 0 keeps the volume's own
    # One step, or several in a list. Kinds: percentile, window, z_score, z_score_nonzero,
    # z_score_body, standard (low, high, mean, deviation), min_max, none.
    normalisation: {kind: percentile, low: 0.5, high: 99.5}
    # Of a network that sees several images, instead of normalisation; input.channels counts them.
    # channels: {t1: {kind: z_score_nonzero}, flair: {kind: z_score_nonzero}}
    resampling: {kind: linear} # spline: as nnU-Net; fixed: to input.size, without spacing_mm
    overlap: 0.5 # of neighbouring windows
    window_batch: 1 # windows in one call of the network
    blending: {weights: gaussian, placement: stride}
    scores: logits # or probabilities, where a softmax stands at the end of the network
    restored: logits # what comes back to the volume's grid before the largest wins
    # Of a network whose channels are regions that overlap: label and channel, later ones win.
    # regions: {whole: 0, core: 1}
    flips: false # average over mirror images along flip_axes
    flip_axes: [0]
    largest_component: false
    fill_holes: false
"""

spec = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@spec.callback()
def _spec() -> None:
    """Look at the description of a model."""


def init(
    task: Annotated[str, typer.Option(help="Kind of work: volumes.")] = Task.VOLUMES.value,
) -> None:
    """Print a description of a model, with comments, to be filled in."""
    if task != Task.VOLUMES:
        raise ConfigError(f"--task: expected volumes, got {task!r}; others have no import yet")
    typer.echo(_VOLUMES, nl=False)


@spec.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model-config.yaml.")],
) -> None:
    """Read a description as a server would, and say what is wrong with it."""
    found = ModelSpec.from_file(file)
    typer.echo(f"{file}: {found.name} {found.version}, {found.task}: {', '.join(found.labels)}")
