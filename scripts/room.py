"""Make the files of a new model, or of a variant of a room, after those of a room that there is.

    python scripts/room.py skin mednist --labels melanoma,naevus --size 64,64 --channels 3
    python scripts/room.py liver segmentation_3d --labels background,liver
    python scripts/room.py mednist --variant wide

Nothing outside the files of the new model is written, and none is overwritten. What is left to do
stands in the card, the configuration and `network.py`; see CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

import models
from medserve.errors import ConfigError, MedserveError
from medserve.spec import ModelSpec, Task

__all__ = ["main", "room_files", "variant_files"]

_ROOT = Path(models.__file__).parents[1]
_CONFIG = "model-config.yaml"
_SECTIONS = {
    "Intended use": "What is answered, of which images, for whom. Research use; not a medical "
    "device.",
    "Input and output": "Kinds of file, sizes, labels; when an answer asks for a person.",
    "Training data": "Source, licence, number of images and of persons, how they were split.",
    "Training": "The command that made the weights, word for word, and how long it took.",
    "Metrics": "Figures on the test part with n and 95 % intervals, from `weights/metrics.json`.",
    "Limits": "Where the model fails, and on whom it was not measured.",
    "Files": "`python scripts/card_files.py` writes this table.\n\n"
    "| file | bytes | SHA-256 |\n|---|---|---|",
}


def room_files(
    name: str,
    like: str,
    labels: Sequence[str] = (),
    size: Sequence[int] = (),
    channels: int = 0,
) -> dict[Path, str]:
    """Return the files of a new room, by their places in the checkout.

    Args:
        name: Of the new room.
        like: A room of the same task.
        labels: In the order of the network's outputs; those of the other room where empty.
        size: Of the network's input; that of the other room where empty.
        channels: 1 or 3; as in the other room where 0.

    Raises:
        ConfigError: the name cannot be one, or the other room's training is its own alone.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"a room is named by a-z, 0-9 and _ with a letter first, as a module of Python; "
            f"{name!r} is not"
        )
    training = (_ROOT / f"training/{like}.py").read_text(encoding="utf-8")
    copied = (Task.CLASSIFICATION, Task.VOLUMES)
    if f"models.{like}" in training or models.spec(like).task not in copied:
        raise ConfigError(
            f"the training of {like} is made for its own network; take mednist for images and "
            "segmentation_3d for volumes"
        )
    handler = (_ROOT / f"handlers/{like}.py").read_text(encoding="utf-8")
    [base] = re.findall(r"^from (handlers\.\w+) import (\w+)$", handler, re.MULTILINE)
    config = (models.room(like) / _CONFIG).read_text(encoding="utf-8")
    room = Path("models") / name
    return {
        room / "__init__.py": f'"""The room {name}."""\n',
        room / _CONFIG: _configured(config, name, labels, size, channels),
        room / "network.py": _network(like),
        room / "README.md": _card(name),
        Path(f"training/{name}.py"): _training(training, name, like),
        Path(f"handlers/{name}.py"): _handler(name, base),
        Path(f"tests/models/test_{name}.py"): _test(name),
    }


def variant_files(name: str, variant: str) -> dict[Path, str]:
    """Return the files of a new variant: another network for what the room answers."""
    config = (models.room(name) / _CONFIG).read_text(encoding="utf-8")
    version = models.spec(name).version
    config = config.replace(f'version: "{version}"', f'version: "{version}-{variant}"')
    folder = Path("models") / name / "variants" / variant
    return {folder / _CONFIG: config, folder / "README.md": _card(f"{name}, {variant}")}


def _configured(
    config: str, name: str, labels: Sequence[str], size: Sequence[int], channels: int
) -> str:
    """Return the configuration of the other room with a name, labels and sizes of its own."""
    changed = re.sub(r"^  name: .*$", f"  name: {name}", config, flags=re.MULTILINE)
    changed = re.sub(r"^  version: .*$", '  version: "1.0"', changed, flags=re.MULTILINE)
    changed = re.sub(r"^  title: .*$", f"  title: {name}", changed, flags=re.MULTILINE)
    if labels:
        listed = f"  labels: [{', '.join(labels)}]\n"
        written = r"(?:^  #.*\n)*^  labels:.*\n(?:^    - .*\n)*"
        changed = re.sub(written, lambda _: listed, changed, flags=re.MULTILINE)
        codes = "".join(
            f'      {label}: {{kind: {{value: "85756007", meaning: Tissue}}}}\n'
            for label in labels[1:]
        )
        coded = f"    snomed: # what DICOM-SEG states of each label (SNOMED CT)\n{codes}"
        written = r"^    snomed:.*\n(?:^      .*\n)*"
        changed = re.sub(written, lambda _: coded, changed, flags=re.MULTILINE)
    if size:
        sides = f"    size: [{', '.join(map(str, size))}]"
        changed = re.sub(r"^    size: .*$", sides, changed, flags=re.MULTILINE)
    if channels:
        fit = "grey" if channels == 1 else "colour"
        changed = re.sub(r"^    channels: .*$", f"    channels: {channels}", changed, flags=re.M)
        changed = re.sub(r"^    fit: .*$", f"    fit: {fit}", changed, flags=re.MULTILINE)
    return changed


def _network(like: str) -> str:
    return f'''"""The networks of the room: those of {like}, until it has its own.

A network is a `torch.nn.Module` that is made with the keywords `in_channels`, `classes` and
`width`. `NETWORKS` names what makes each; the first is taken where a training names none.
"""

from __future__ import annotations

from models.{like}.network import NETWORKS

__all__ = ["NETWORKS"]
'''


def _card(title: str) -> str:
    sections = "".join(f"\n## {heading}\n\n{text}\n" for heading, text in _SECTIONS.items())
    return f"# {title}\n{sections}"


def _training(training: str, name: str, like: str) -> str:
    """Return the training of the other room under the new name, with its data elsewhere."""
    changed = re.sub(r'"data/[^"]+"', f'"data/{name}"', training)
    changed = re.sub(r"--data-dir \w+", "--data-dir DIR", changed)
    changed = re.sub(r'^""".*$', f'"""Train the room {name}: `python -m training.{name}`.',
                     changed, count=1)  # fmt: skip
    if not changed.partition("\n")[2].startswith("\n    "):
        changed = changed.replace(f"training.{name}`.\n", f'training.{name}`."""\n', 1)
    return re.sub(rf"(?<![A-Za-z0-9]){like}(?![A-Za-z0-9])", name, changed)


def _handler(name: str, base: tuple[str, str]) -> str:
    module, class_name = base
    title = "".join(part.capitalize() for part in name.split("_"))
    return f'''"""The handler of the room {name}."""

from __future__ import annotations

from {module} import {class_name}


class {title}Handler({class_name}):  # TorchServe wants exactly one class in this file
    """Answers as the configuration of the room says."""
'''


def _test(name: str) -> str:
    return f'''"""What is particular to the room {name}."""

from __future__ import annotations

import torch

import models


def test_the_network_answers_with_a_channel_for_each_label() -> None:
    spec = models.spec("{name}")
    channels, classes = spec.input.channels, len(spec.labels)
    network = models.build("{name}", in_channels=channels, classes=classes).eval()
    with torch.no_grad():
        logits = network(torch.rand(1, channels, *spec.input.size))
    assert logits.shape[:2] == (1, classes)
'''


def _write(files: Mapping[Path, str]) -> None:
    """Write the files, or none where one is there already or the configuration is wrong."""
    if there := [str(path) for path in files if (_ROOT / path).exists()]:
        raise ConfigError(f"{', '.join(there)}: already there; choose another name")
    for path, text in files.items():
        if path.name == _CONFIG:
            ModelSpec.from_mapping(yaml.safe_load(text))
    for path, text in files.items():
        (_ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (_ROOT / path).write_text(text, encoding="utf-8")
        print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files that the flags ask for; an expected error is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="Make the files of a new model.")
    parser.add_argument("name", help="name of the new room, or of a room for --variant")
    parser.add_argument("like", nargs="?", default="mednist", help="room of the same task")
    parser.add_argument("--labels", default="", help="with commas, in the order of the outputs")
    parser.add_argument("--size", default="", help="sides of the network's input, with commas")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=0)
    parser.add_argument("--variant", default="", help="make this variant of the room instead")
    given = parser.parse_args(arguments)
    try:
        if given.variant:
            _write(variant_files(given.name, given.variant))
            return 0
        labels = tuple(filter(None, given.labels.split(",")))
        size = [int(side) for side in given.size.split(",") if side]
        _write(room_files(given.name, given.like, labels, size, given.channels))
    except (MedserveError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
