"""`medserve predict` against a server that answers as TorchServe does."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Medserve
from tests.client.fake_gateway import LABELS, FakeGateway, serving
from tests.client.segmenting import volumes_model

MEMBERS = {
    *("path", "status", "label", "label_id", "probability", "probabilities", "top", "review"),
    *("unlike_training", "novelty", "model", "version", "archive_digest", "error"),
}


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    (folder / "c.png").write_bytes(b"Hand")
    (folder / "a.png").write_bytes(b"CXR?")
    (folder / "b" / "z.png").write_bytes(b"HeadCT!")
    (folder / ".hidden.png").write_bytes(b"Hand")
    (folder / "b" / ".DS_Store").write_bytes(b"x")
    return folder


def test_json_has_one_line_per_input_in_sorted_order(
    medserve: Medserve, fake: FakeGateway, images: Path
) -> None:
    run = medserve("predict", "mednist", images, "--json", "--address", fake.address)
    assert run.code == 0
    answers = lines(run.out)
    assert [Path(each["path"]).name for each in answers] == ["a.png", "c.png", "z.png"]
    assert [each["label"] for each in answers] == ["CXR", "Hand", "HeadCT"]
    assert [each["review"] for each in answers] == [True, False, False]
    assert [each["unlike_training"] for each in answers] == [False, False, True]


def test_json_line_has_the_documented_members(
    medserve: Medserve, fake: FakeGateway, images: Path
) -> None:
    (images / "d.png").write_bytes(b"broken")
    run = medserve("predict", "mednist", images, "--json", "--address", fake.address)
    good, *_ = lines(run.out)
    [bad] = [each for each in lines(run.out) if each["status"] == "error"]
    assert set(good) == set(bad) == MEMBERS
    assert good["probabilities"].keys() == set(LABELS)
    assert (good["model"], good["version"], good["label_id"]) == ("mednist", "1.0", 3)
    assert bad["error"]["code"] == "INVALID_IMAGE"
    assert bad["label"] is None


def test_one_broken_file_gives_exit_code_1_and_costs_no_other(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    for place in range(300):
        content = b"broken" if place in (3, 150, 299) else LABELS[place % 6].encode()
        (tmp_path / f"{place:03}.png").write_bytes(content)
    run = medserve("predict", "mednist", tmp_path, "--json", "--address", fake.address)
    assert run.code == 1
    statuses = [each["status"] for each in lines(run.out)]
    assert [place for place, each in enumerate(statuses) if each == "error"] == [3, 150, 299]


def test_table_shows_class_probability_and_flags(
    medserve: Medserve, fake: FakeGateway, images: Path
) -> None:
    (images / "d.png").write_bytes(b"broken")
    run = medserve("predict", "mednist", images, "--address", fake.address)
    assert run.code == 1
    rows = run.out.splitlines()
    assert "0.6000" in rows[1]
    assert rows[1].rstrip().endswith("review")
    assert "Hand" in rows[2]
    assert "INVALID_IMAGE" in rows[3]
    assert "unlike the training data" in rows[4]


def test_top_k_adds_the_next_classes(medserve: Medserve, fake: FakeGateway, images: Path) -> None:
    arguments = ("predict", "mednist", images / "c.png", "--top-k", 3, "--address", fake.address)
    assert len(medserve(*arguments).out.splitlines()) == 4
    [answer] = lines(medserve(*arguments, "--json").out)
    assert answer["top"][0] == {"label": "Hand", "probability": 0.98}
    assert len(answer["top"]) == 3


def test_out_folder_gets_a_file_per_input_and_a_table(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.png").write_bytes(b"Hand")
    (tmp_path / "two" / "SAME.jpg").write_bytes(b"broken")
    out = tmp_path / "out"
    run = medserve(
        *("predict", "mednist", tmp_path / "one", tmp_path / "two"),
        *("--out", out, "--address", fake.address),
    )
    assert run.code == 1
    names = sorted(path.name for path in out.iterdir())
    assert names == ["SAME-2.json", "results.csv", "same-3.json", "same.json"]
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["json"] for row in rows] == ["same.json", "SAME-2.json", "same-3.json"]
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert rows[1]["error"].startswith("INVALID_IMAGE: ")
    assert json.loads((out / "same.json").read_text())["label"] == "Hand"


def test_dash_reads_one_input_from_standard_input(
    medserve: Medserve, fake: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"BreastMRI")))
    run = medserve("predict", "mednist", "-", "--json", "--address", fake.address)
    assert run.code == 0
    [answer] = lines(run.out)
    assert (answer["path"], answer["label"]) == ("-", "BreastMRI")


def test_address_comes_from_the_environment_and_the_flag_beats_it(
    medserve: Medserve, fake: FakeGateway, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_ADDRESS", fake.address)
    assert medserve("predict", "mednist", images).code == 0
    monkeypatch.setenv("MEDSERVE_ADDRESS", "127.0.0.1:9")
    assert medserve("predict", "mednist", images, "--address", fake.address).code == 0


@pytest.mark.loopback
def test_token_comes_from_a_file_or_the_environment(
    medserve: Medserve, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with serving(FakeGateway(token="s3cret")) as fake:
        arguments = ("predict", "mednist", images, "--address", fake.address)
        assert medserve(*arguments, "--token-file", tmp_path / "token").code == 0
        refused = medserve(*arguments)
        monkeypatch.setenv("MEDSERVE_TOKEN", "s3cret")
        assert medserve(*arguments).code == 0
    assert refused.code == 2
    assert "token" in refused.err


@pytest.mark.parametrize("content", ["", "two\nlines", "umläut"])
def test_file_without_a_usable_token_is_refused(
    content: str, medserve: Medserve, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(content)
    run = medserve("predict", "mednist", images, "--token-file", tmp_path / "token")
    assert run.code == 2
    assert "expected one token" in run.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "mednist", "nowhere.png"], "expected an existing file"),
        (["predict", "mednist", "-", "-"], "once at most"),
        (["predict", "mednist", "{images}", "--address", "nonsense"], "host:port"),
        (["predict", "mednist", "{images}", "--address", "127.0.0.1:9"], "medserve serve"),
        (["predict", "nosuch", "{images}"], "has no model nosuch"),
        (["predict", "mednist", "{images}", "--out", "{images}/c.png"], "file"),
        (["predict", "mednist"], "Missing argument"),
    ],
)
def test_wrong_usage_and_dead_server_give_exit_code_2(
    arguments: list[str],
    message: str,
    medserve: Medserve,
    fake: FakeGateway,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDSERVE_ADDRESS", fake.address)
    run = medserve(*(each.format(images=images) for each in arguments))
    assert run.code == 2
    assert message in run.err
    assert "Traceback" not in run.err
    assert run.out == ""


@pytest.mark.loopback
def test_error_of_a_dead_server_is_one_line(medserve: Medserve, images: Path) -> None:
    run = medserve("predict", "mednist", images, "--address", "127.0.0.1:9")
    assert len(run.err.strip().splitlines()) == 1


def test_hostile_names_neither_paint_the_terminal_nor_break_the_lines(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    (tmp_path / "a\x1b[31m\n[red]b.png").write_bytes(b"Hand")
    (tmp_path / "=cmd().png").write_bytes(b"Hand")
    address = ("--address", fake.address)
    people = medserve("predict", "mednist", tmp_path, *address)
    assert people.code == 0
    assert "\x1b" not in people.out
    assert "[red]b.png" in people.out
    machines = medserve("predict", "mednist", tmp_path, "--json", *address)
    assert [Path(each["path"]).name for each in lines(machines.out)] == [
        "=cmd().png",
        "a\x1b[31m\n[red]b.png",
    ]


def test_link_out_of_the_folder_is_not_followed(
    medserve: Medserve, fake: FakeGateway, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(b"Hand")
    (images / "out.png").symlink_to(tmp_path / "secret.png")
    (images / "in.png").symlink_to(images / "c.png")
    (images / "loop").symlink_to(images)
    run = medserve("predict", "mednist", images, "--json", "--address", fake.address)
    names = [Path(each["path"]).name for each in lines(run.out)]
    assert names == ["a.png", "c.png", "in.png", "z.png"]


@pytest.mark.process
def test_commands_start_without_engines_and_codecs() -> None:
    heavy = ["torch", "openvino", "onnxruntime", "PIL", "pydicom"]
    modules = "medserve.cli.predict, medserve.cli.sort, medserve.cli.models"
    check = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_explain_writes_a_heat_map_beside_each_answer(
    medserve: Medserve, fake: FakeGateway, images: Path, tmp_path: Path
) -> None:
    (images / "d.png").write_bytes(b"broken")
    out = tmp_path / "out"
    run = medserve(
        "predict", "mednist", images, "--explain", "--out", out, "--address", fake.address
    )
    assert run.code == 1
    maps = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert maps == {
        "a_heatmap.png": b"map of CXR",
        "c_heatmap.png": b"map of Hand",
        "z_heatmap.png": b"map of HeadCT",
    }
    answer = json.loads((out / "c.json").read_text())
    assert answer["explanation"] == {
        "method": "occlusion",
        "label": "Hand",
        "without_warmest": 0.25,
        "without_coolest": 0.75,
        "full_colour": 1.5,
    }
    assert "explanation" not in json.loads((out / "d.json").read_text())
    assert "0.2500 without its warmest quarter" in run.out


def test_explain_needs_a_folder_and_says_so_before_any_work(
    medserve: Medserve, fake: FakeGateway, images: Path
) -> None:
    run = medserve("predict", "mednist", images, "--explain", "--address", fake.address)
    assert run.code == 2
    assert "--explain: expected --out DIR" in run.err
    assert not fake.requests


@pytest.mark.loopback
def test_a_flag_of_another_task_is_refused_before_any_work(
    medserve: Medserve, images: Path, tmp_path: Path
) -> None:
    with serving(FakeGateway(volumes_model())) as fake:
        run = medserve(
            *("predict", "mednist", images, "--explain"),
            *("--out", tmp_path / "out", "--address", fake.address),
        )
    assert run.code == 2
    assert run.err.strip() == "error: --explain: mednist has no such option; leave it out"
    assert not fake.requests
