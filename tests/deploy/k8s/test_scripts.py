"""The shell lines inside the manifests, run as the containers would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.k8s.rendering import K8S, Manifest, only

pytestmark = pytest.mark.process

# Writes down which files it was given, refuses those named "broken", and ends with `$CODE` if set.
PREDICT = """\
#!{python}
import os, sys
fine = sys.argv[1:4] == ["predict", "segmentation_3d", "--out"]
fine &= os.environ.get("MEDSERVE_TOKEN", "") == os.environ.get("EXPECTED_TOKEN", "")
fine &= ("MEDSERVE_CA_FILE" in os.environ) == ("EXPECTED_TOKEN" in os.environ)
if not fine:
    sys.exit(3)  # not 1, which says that a study was refused
with open(os.environ["SEEN"], "a") as file:
    file.write("".join(path + "\\0" for path in sys.argv[sys.argv.index("--json") + 1 :]))
broken = any("broken" in path for path in sys.argv)
sys.exit(int(os.environ.get("CODE") or broken))
"""
STUDIES = 23


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A volume with studies whose names are as unkind as names can be."""
    folder = tmp_path / "studies" / "input"
    folder.mkdir(parents=True)
    for number in range(STUDIES):
        kind = ("a b", "ünï", "-n", "new\nline", "quote'\"")[number % 5]
        if number % 4:
            (folder / f"{kind} {number}.nii.gz").touch()
        else:  # a DICOM series
            (folder / f"{kind} {number}").mkdir()
            for slice_number in range(3):
                (folder / f"{kind} {number}" / f"{slice_number}.dcm").touch()
    (folder / ".DS_Store").touch()
    return tmp_path / "studies"


def run_shard(studies: Path, index: int, shards: int, code: str = "") -> tuple[int, set[str]]:
    """Exit code of one pod of the job, and the files that it sent."""
    container = yaml.safe_load((K8S / "jobs/batch-predict.yaml").read_text(encoding="utf-8"))[
        "spec"
    ]["template"]["spec"]["containers"][0]
    programs = studies.parent / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "medserve"
    program.write_text(PREDICT.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    seen = studies.parent / f"seen-{index}"
    seen.write_bytes(b"")
    script = container["args"][0].replace("/studies", str(studies))
    script = script.replace("/tmp/shard", str(studies.parent / f"list-{index}"))
    script = script.replace("/caller", str(studies.parent / "caller"))
    environment = os.environ | {each["name"]: each["value"] for each in container["env"]}
    environment |= {"SHARDS": str(shards), "JOB_COMPLETION_INDEX": str(index)}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "SEEN": str(seen), "CODE": code}
    done = subprocess.run([*container["command"], script], env=environment, capture_output=True)
    sent = [os.fsdecode(each) for each in seen.read_bytes().split(b"\0") if each]
    assert len(sent) == len(set(sent))
    return done.returncode, set(sent)


def test_the_shards_take_every_study_exactly_once(studies: Path) -> None:
    shards = [run_shard(studies, index, 4) for index in range(4)]
    assert [code for code, _ in shards] == [0] * 4
    sent = [path for _, paths in shards for path in paths]
    assert len(sent) == STUDIES
    expected = (path for path in (studies / "input").iterdir() if path.name != ".DS_Store")
    assert set(sent) == set(map(str, expected))
    assert max(len(paths) for _, paths in shards) - min(len(paths) for _, paths in shards) <= 1


def test_a_token_and_an_authority_are_used_where_they_are_given(
    studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = studies.parent / "caller"
    caller.mkdir()
    (caller / "token").write_text("ms_1_secret\n", encoding="utf-8")
    (caller / "ca.crt").write_text("PEM", encoding="utf-8")
    monkeypatch.setenv("EXPECTED_TOKEN", "ms_1_secret")
    assert run_shard(studies, 0, 1)[0] == 0
    monkeypatch.setenv("EXPECTED_TOKEN", "another")
    assert run_shard(studies, 0, 1)[0] != 0


def test_more_shards_than_studies_is_no_failure(studies: Path) -> None:
    assert run_shard(studies, 30, 40) == (0, set())


def test_a_refused_study_does_not_fail_its_shard(studies: Path) -> None:
    (studies / "input" / "broken.nii.gz").touch()
    codes = {run_shard(studies, index, 2)[0] for index in range(2)}
    assert codes == {0}


def test_a_server_that_is_not_there_fails_the_shard_so_that_it_is_tried_again(
    studies: Path,
) -> None:
    code, _ = run_shard(studies, 0, 2, code="2")
    assert code != 0


def test_shards_and_completions_are_the_same_number() -> None:
    job = yaml.safe_load((K8S / "jobs/batch-predict.yaml").read_text(encoding="utf-8"))["spec"]
    variables = job["template"]["spec"]["containers"][0]["env"]
    shards = next(each["value"] for each in variables if each["name"] == "SHARDS")
    assert int(shards) == job["completions"]


def test_the_command_line_knows_the_flags_of_the_job() -> None:
    script = (K8S / "jobs/batch-predict.yaml").read_text(encoding="utf-8")
    flags = set(re.findall(r"--(?:out|overwrite|json)\b", script))
    assert flags == {"--out", "--overwrite", "--json"}
    command = [sys.executable, "-m", "medserve.cli.main", "predict", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"{flag}\b", shown) for flag in flags)


def copy_models(base: list[Manifest], image: Path, store: Path) -> subprocess.CompletedProcess[str]:
    pod = only(base, "Deployment")["spec"]["template"]["spec"]
    container = pod["initContainers"][0]
    script = container["args"][0].replace("/models", str(image)).replace("/store", str(store))
    return subprocess.run([*container["command"], script], capture_output=True, text=True)


def test_the_archives_of_the_image_are_copied(base: list[Manifest], tmp_path: Path) -> None:
    image, store = tmp_path / "image", tmp_path / "out"
    for folder in (image, store):
        folder.mkdir()
    for name in ("mednist-1.0.mar", "blood_cell-1.0.mar"):
        (image / name).write_text(name, encoding="utf-8")
    assert copy_models(base, image, store).returncode == 0
    assert {path.name: path.read_text() for path in store.iterdir()} == {
        name: name for name in ("mednist-1.0.mar", "blood_cell-1.0.mar")
    }


def test_an_image_without_archives_says_so_in_one_line(
    base: list[Manifest], tmp_path: Path
) -> None:
    (tmp_path / "image").mkdir()
    done = copy_models(base, tmp_path / "image", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "models-pvc" in done.stderr
