"""`medserve init` writes a description to fill in; `medserve spec check` reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medserve.errors import ConfigError
from medserve.spec import ModelSpec, Task

__all__ = ["init", "spec"]

_HEAD = """\
# How a network is fed and what it answers; every key and its default:
# the reference of model-config.yaml in the documentation. Then:
#   medserve spec check FILE
#   medserve import onnx NETWORK.onnx --spec FILE      (or: torchscript NETWORK.pt)
"""
_VOLUMES = """\
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

_OF_PICTURES = """\
minWorkers: 1
maxWorkers: 8
batchSize: 16 # pictures share calls of the network
responseTimeout: 120 # s for one batch
startupTimeout: 120 # s

medserve:
  name: my_model # letters, digits and _
  version: "1.0"
"""
_INPUT_OF_PICTURES = """\
  input:
    kinds: [raster, dicom] # PNG, JPEG and TIFF; single DICOM images
    size: [224, 224] # rows and columns of the network's input
    channels: 3
    fit: colour # grey (1 channel), colour, lanczos: bilinear or Lanczos, antialiased
    proportions: stretched # to the sides of the input; kept: black beside the image; cropped: its
    # middle: 0.875 # that part of the shorter side, as 224 of 256 pixels
    mean: [0.485, 0.456, 0.406] # of values in [0, 1], by channel; without both lines: none
    deviation: [0.229, 0.224, 0.225]
"""
_CLASSES = """\
  title: What it tells apart
  task: classification
  labels: [benign, malignant] # in the order of the network's scores
"""
_SCORES = """\
  output:
    classes: exclusive # or independent: none, one or several labels, a sigmoid for each
    # threshold: 0.5 # of independent classes, from which a label is present; or a list, one a label
    scores: logits # or probabilities, where a softmax or sigmoids end the network
    review_below: 0.8 # probability below which a person should look
    top_k: 3
"""
_VALUES = """\
  title: What it estimates
  task: regression
  values: # in the order of the network's outputs; as many as it has
    - name: bone age
      unit: mo # UCUM code: mo, a, %, mm, g; 1 for none
      unit_name: months
      offset: 0 # the answer is offset + scale * output: mean and standard deviation of the
      scale: 1 # targets, where the network learned standardised ones
      range: [0, 240] # what is plausible; an answer beyond it stays as it is, with a doubt
"""
_CLASSIFICATION = _OF_PICTURES + _CLASSES + _INPUT_OF_PICTURES + _SCORES
_REGRESSION = _OF_PICTURES + _VALUES + _INPUT_OF_PICTURES
_FRAMES = """\
minWorkers: 1
maxWorkers: 8
batchSize: 1
responseTimeout: 120 # s for one file
startupTimeout: 120 # s

medserve:
  name: my_model # letters, digits and _
  version: "1.0"
  title: What it finds
  task: frames
  labels: [background, structure] # the background first, then one structure or several
  input:
    kinds: [raster, dicom, nifti] # pictures, cine loops, stacks
    size: [256, 256] # rows and columns of the network's input; its output has the same
    channels: 1 # grey: of a colour picture the luma; 3: red, green, blue
    proportions: kept # black beside the frame; stretched: to the sides of the input
    # mean: [0.485, 0.456, 0.406] # of each channel, after the normalisation below
    # deviation: [0.229, 0.224, 0.225]
    max_payload_bytes: 134217728
  frame:
    crop: {kind: none} # content: the box around what is not black; box: shares of the sides
    interpolation: bilinear # to input.size
    normalisation: {kind: window, low: 0, high: 1} # of values in [0, 1]; others as for volumes
    activation: sigmoid # a channel for each structure; softmax: for each label, background first
    scores: logits # or probabilities, where that sigmoid or softmax ends the network
    threshold: 0.5 # probability from which a pixel belongs to a structure, with sigmoid
    ultrasound: false # true: frames that do not look like B-mode ultrasound are marked
    largest_component: false
    fill_holes: false
"""
_DESCRIPTIONS = {
    Task.VOLUMES: _VOLUMES,
    Task.CLASSIFICATION: _CLASSIFICATION,
    Task.REGRESSION: _REGRESSION,
    Task.FRAMES: _FRAMES,
}

spec = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@spec.callback()
def _spec() -> None:
    """Look at the description of a model."""


def init(
    task: Annotated[
        str, typer.Option(help="Kind of work: volumes, classification, regression or frames.")
    ] = Task.VOLUMES.value,
) -> None:
    """Print a description of a model, with comments, to be filled in."""
    known = [each.value for each in _DESCRIPTIONS]
    if task not in known:
        raise ConfigError(
            f"--task: expected one of {', '.join(known)}, got {task!r}, which is not imported"
        )
    typer.echo(_HEAD + _DESCRIPTIONS[Task(task)], nl=False)


@spec.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model-config.yaml.")],
) -> None:
    """Read a description as a server would, and say what is wrong with it."""
    found = ModelSpec.from_file(file)
    told = found.labels or [f"{each.name} ({each.unit_name})" for each in found.values]
    typer.echo(f"{file}: {found.name} {found.version}, {found.task}: {', '.join(told)}")
