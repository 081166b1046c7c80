"""A stranger's first command: clone, `make demo`, real answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


# A row of the demonstration: model, input, answer, then what the answer carries. Times differ.
ROW = re.compile(r"^(\w+) {2,}(\S.*?) {2,}(\S.*?)(?: {2,}(0\.\d{4}))? {2,}\d+\.\d *(.*)$", re.M)


def rows_of_the_readme() -> list[tuple[str, ...]]:
    """What the README prints of the demonstration."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("[start:demo]")[2].partition("```text\n")[2].partition("```")[0]
    return ROW.findall(block)


def differences(printed: list[tuple[str, ...]], answers: list[dict[str, Any]]) -> list[str]:
    """Where rows of the README say something else than the answers of a run."""
    found: list[str] = []
    by_input = {(each["model"], each["input"]): each for each in answers}
    for model, title, text, probability, note in printed:
        answer = by_input.get((model, title), {})
        match answer:
            case {"error": {"code": code, "message": message}}:
                fits = text == code and message.startswith(note.partition("…")[0])
            case {"label": label, "probability": real}:
                doubts = answer["review"] * ["review"]
                doubts += answer["unlike_training"] * ["unlike training data"]
                near = abs(float(probability) - real) < 0.002  # processors round differently
                fits = text == label and near and note == ", ".join(doubts)
            case {"measures": measures}:
                real_ml = [(each["label"], each["volume_ml"]) for each in measures]
                shown = re.findall(r"(\w+) ([\d.]+) ml", text)
                fits = [name for name, _ in shown] == [name for name, _ in real_ml] and all(
                    abs(float(ml) - real) < 0.02
                    for (_, ml), (_, real) in zip(shown, real_ml, strict=True)
                )
            case {"stack": stack}:
                fits = text.startswith(f"found in {stack['frames_found']} of ")
            case {"images": images}:
                fits = text == f"{len(images)} synthetic images"
            case _:
                fits = False
        if not fits:
            found.append(f"{model} {title}: printed {text!r} {note!r}, got {answer}")
    return found


def test_a_row_that_says_something_else_would_be_noticed() -> None:
    rows = rows_of_the_readme()
    assert {row[0] for row in rows} == {
        *("blood_cell", "diffusion_sampler", "mednist", "segmentation_3d", "trus_prostate")
    }
    measured = {"model": "m", "input": "i", "measures": [{"label": "a", "volume_ml": 1.94}]}
    assert differences([("m", "i", "a 1.95 ml", "", "")], [measured]) == []
    assert differences([("m", "i", "a 1.98 ml", "", "")], [measured])
    assert differences([("m", "another", "a 1.94 ml", "", "")], [measured])


@pytest.mark.clone
@pytest.mark.timeout(1200)  # installs everything from nothing
def test_a_fresh_clone_answers_after_one_command(tmp_path: Path) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout with its history")
    clone = tmp_path / "medserve"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MEDSERVE_")}
    # make hands its variables down to what it starts, this test included
    for inherited in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VIRTUAL_ENV"):
        clean.pop(inherited, None)
    demo = subprocess.run(["make", "demo"], cwd=clone, env=clean, capture_output=True, text=True)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    written = {path.suffix for path in (clone / "outputs").rglob("*")}
    assert {".png", ".json"} <= written
    (answers,) = (clone / "outputs").glob("*.json")
    assert differences(rows_of_the_readme(), json.loads(answers.read_text(encoding="utf-8"))) == []
    assert re.search(r"^ +\d+ torch[=-]", demo.stdout, re.M), "make shows what it installs"
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert status.stdout == "", "the demonstration must leave the checkout as it was"
