"""A stranger's first command: clone, `make demo`, real answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
    assert "Hand" in json.dumps(json.loads(answers.read_text(encoding="utf-8")))
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert status.stdout == "", "the demonstration must leave the checkout as it was"
