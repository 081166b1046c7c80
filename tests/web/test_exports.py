"""The table and the zip, byte for byte."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tempfile
import zipfile
from datetime import datetime
from pathlib import Path, PurePosixPath

import pytest

from medserve.errors import InvalidImageError
from medserve.gateway.faces.page import exports
from medserve.gateway.faces.page.jobs import Item, Job, Kind
from medserve.results.sorted_folders import doubt_first, read_corrections, read_manifest
from medserve.tasks.classification import Classification
from medserve.tasks.result import Provenance
from tests.web.test_sessions import closed, log_in
from tests.web.visiting import FINDINGS, PACK, Visitor, begin, gateway, radiographs, send, visit

LABELS = ("dark", "bright")
GOOD = Classification(LABELS, (0.99, 0.01), review=False, novelty=0.1)
TWINS = {
    "one/hand.png": b"ok dark 1",
    "two/hand.png": b"ok dark 2",
    "three/HAND.PNG": b"ok dark 3",
    "four/hand.png": b"ok dark 1",  # the same name and the same bytes as the first
    "doubtful.png": b"review dark",
    "odd.png": b"odd bright",
    "letter.txt": b"a letter",
}


def job_of(folder: Path, *names: str) -> Job:
    """A classified job whose files hold their own number."""
    job = Job("id", Kind.CLASSIFY, "owner", folder, "kinds", "1.0", LABELS, 0.0)
    for number, name in enumerate(names):
        item = Item(number, name, 1, "", GOOD, Provenance("kinds", "1.0", "sha256:0"))
        job.items[number] = item
        job.path(item).write_bytes(str(number).encode())
    return job


def in_the_folder(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The files of the one folder that a zip has, by their names in it."""
    paths = {name: PurePosixPath(name) for name in archive.namelist()}
    assert {path.parts[0] for path in paths.values()} == {"medserve-results"}
    return {
        str(path.relative_to("medserve-results")): archive.read(name)
        for name, path in paths.items()
        if not name.endswith("/")
    }


@visit()
async def test_the_zip_holds_the_original_bytes_in_one_folder_per_class(client: Visitor) -> None:
    job = await begin(client)
    await send(client, job, TWINS)
    response = await client.get(f"{job}/results.zip")
    assert response.headers["content-type"] == "application/zip"
    assert "attachment" in response.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        content = in_the_folder(archive)
        folders = {name.split("/")[1] for name in archive.namelist() if name.endswith("/")}
    assert folders == set(LABELS)  # also those of no file
    table = content.pop("manifest.csv").decode("utf-8-sig")
    assert content == {
        "dark/hand.png": b"ok dark 1",
        "dark/hand-2.png": b"ok dark 2",
        "dark/HAND-3.PNG": b"ok dark 3",
        "dark/hand-4.png": b"ok dark 1",
        "_review/doubtful.png": b"review dark",
        "_review/odd.png": b"odd bright",
        "_errors/letter.txt": b"a letter",
    }
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["source"] for row in rows] == list(TWINS)
    for row in rows:
        assert hashlib.sha256(content[row["stored"]]).hexdigest() == row["sha256"]


@visit()
async def test_a_file_in_the_zip_has_the_date_that_it_had(client: Visitor) -> None:
    job = await begin(client)
    content = b"ok dark"
    changed = datetime(2021, 3, 4, 5, 6, 8).astimezone()
    listed = [{"number": 0, "name": "a.png", "size": len(content),
               "modified": int(changed.timestamp())}]  # fmt: skip
    body = json.dumps(listed).encode() + b"\n" + content
    assert (await client.post(f"{job}/files", content=body, headers=PACK)).status_code == 200
    with zipfile.ZipFile(io.BytesIO((await client.get(f"{job}/results.zip")).content)) as archive:
        dates = {entry.filename: entry.date_time for entry in archive.infolist()}
    assert dates["medserve-results/dark/a.png"] == (2021, 3, 4, 5, 6, 8)


@visit(lambda: gateway(models=[radiographs()]))
async def test_several_labels_or_none_have_one_folder_each_and_are_set_by_hand(
    client: Visitor,
) -> None:
    job = await begin(client, name="xrays")
    files = {
        "clear.png": b"nothing", "one.png": b"Mass", "two.png": b"Effusion Nodule",
        "unsure.png": b"Mass?", "wrong.png": b"Mass too",
    }  # fmt: skip
    told = await send(client, job, files)
    assert [each["present"] for each in told] == [
        [], ["Mass"], ["Effusion", "Nodule"], ["Mass"], ["Mass"],
    ]  # fmt: skip
    assert not any("label" in each for each in told)
    assert (await client.get(job)).json()["independent"] is True
    classes = {"3": "none", "4": "Nodule; Mass"}
    answered = await client.post(f"{job}/classes", json={"classes": classes})
    assert [each["correction"] for each in answered.json()["files"]] == ["none", "Mass; Nodule"]
    refused = await client.post(f"{job}/classes", json={"classes": {"0": "Mass; Fracture"}})
    assert refused.status_code == 400
    with zipfile.ZipFile(io.BytesIO((await client.get(f"{job}/results.zip")).content)) as archive:
        content = in_the_folder(archive)
        folders = {name.split("/")[1] for name in archive.namelist() if name.endswith("/")}
    assert folders == {*FINDINGS, "_none", "_several"}
    assert set(content) == {
        "_none/clear.png", "Mass/one.png", "_several/two.png", "_none/unsure.png",
        "_several/wrong.png", "manifest.csv", "corrections.csv",
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(content["manifest.csv"].decode("utf-8-sig"))))
    assert [(row["class"], row["class_id"], row["probability"]) for row in rows[:3]] == [
        ("none", "", ""), ("Mass", "1", "0.900000"), ("Effusion; Nodule", "0; 2",
                                                      "0.900000; 0.900000"),
    ]  # fmt: skip
    assert (rows[4]["class"], rows[4]["class_id"], rows[4]["predicted_class"]) == (
        "Mass; Nodule", "1; 2", "Mass",
    )  # fmt: skip


@visit()
async def test_a_class_by_hand_decides_the_folder(client: Visitor) -> None:
    job = await begin(client)
    await send(client, job, TWINS)
    await client.post(f"{job}/classes", json={"classes": {"0": "bright", "4": "dark", "6": "dark"}})
    with zipfile.ZipFile(io.BytesIO((await client.get(f"{job}/results.zip")).content)) as archive:
        names = set(in_the_folder(archive))
    assert {"bright/hand.png", "dark/doubtful.png", "dark/letter.txt"} <= names
    row = next(csv.DictReader(io.StringIO((await client.get(f"{job}/results.csv")).text[1:])))
    assert (row["class"], row["class_id"], row["predicted_class"]) == ("bright", "1", "dark")
    assert row["corrected"] == "yes"


@visit(closed)
async def test_a_correction_tells_who_and_when_without_the_files_name(client: Visitor) -> None:
    await log_in(client)
    job = await begin(client)
    await send(client, job, TWINS)
    await client.post(f"{job}/classes", json={"classes": {"0": "bright", "1": "bright"}})
    await client.post(f"{job}/classes", json={"classes": {"1": None}})
    text = (await client.get(f"{job}/corrections.csv")).text
    assert "hand" not in text
    [row] = csv.DictReader(io.StringIO(text))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row.pop("corrected_at"))
    assert row.pop("archive_digest").startswith("sha256:")
    assert row == {
        "sha256": hashlib.sha256(b"ok dark 1").hexdigest(),
        "class": "bright",
        "predicted_class": "dark",
        "probability": "0.990000",
        "corrected_by": "lab",
        "model": "kinds",
        "version": "1.0",
    }
    named = (await client.get(f"{job}/corrections.csv?names")).text
    assert next(csv.DictReader(io.StringIO(named)))["source"] == "one/hand.png"


@visit()
async def test_the_zip_of_corrected_files_is_read_by_review_and_training(client: Visitor) -> None:
    job = await begin(client)
    await send(client, job, TWINS)
    with tempfile.TemporaryDirectory() as folder:

        async def unpacked(name: str) -> Path:
            content = (await client.get(f"{job}/results.zip")).content
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(Path(folder) / name)
            return Path(folder) / name / "medserve-results"

        before = await unpacked("before")
        assert not read_corrections(before)
        rows = [row for row in read_manifest(before) if row["class"]]
        first = [row["stored"] for row in sorted(rows, key=doubt_first)[:2]]
        assert first == ["_review/odd.png", "_review/doubtful.png"]
        await client.post(f"{job}/classes", json={"classes": {"4": "bright"}})
        after = await unpacked("after")
        [(digest, correction)] = read_corrections(after).items()
        assert digest == hashlib.sha256(b"review dark").hexdigest()
        assert (correction.label, correction.predicted) == ("bright", "dark")
        assert (after / "bright" / "doubtful.png").read_bytes() == b"review dark"


@visit()
async def test_csv_and_json_tell_the_same(client: Visitor) -> None:
    job = await begin(client)
    await send(client, job, TWINS)
    table = await client.get(f"{job}/results.csv")
    rows = list(csv.DictReader(io.StringIO(table.content.decode("utf-8-sig"))))
    files = json.loads((await client.get(f"{job}/results.json")).content)["files"]
    assert [row["source"] for row in rows] == [file["name"] for file in files]
    assert [row["status"] for row in rows] == [file["status"] for file in files]
    assert [row["stored"] for row in rows] == [file["stored"] for file in files]
    assert [row["probability"] for row in rows if row["probability"]] == [
        f"{file['probability']:.6f}" for file in files if "probability" in file
    ]
    assert all(row["archive_digest"].startswith("sha256:") for row in rows)


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_name_becomes_a_formula_in_a_spreadsheet(tmp_path: Path, name: str) -> None:
    table = exports.to_csv(job_of(tmp_path, name)).decode("utf-8-sig")
    [row] = csv.DictReader(io.StringIO(table))
    assert row["source"] == f"./{name}"


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("../../../etc/passwd", "dark/passwd"),
        ("/etc/passwd", "dark/passwd"),
        ("C:\\scans\\hand.png", "dark/hand.png"),
        ("..", "dark/file"),
        ("", "dark/file"),
        ("a/", "dark/a"),
        ("con.png", "dark/_con.png"),
        ("a\0b\r\n.png", "dark/a_b__.png"),
        ('<img src=x onerror="alert(1)">.png', "dark/_img src=x onerror=_alert(1)__.png"),
        ("trailing. ", "dark/trailing"),
        (".hidden", "dark/hidden"),
        ("рука.png", "dark/рука.png"),
        ("e\N{COMBINING ACUTE ACCENT}.png", "dark/\N{LATIN SMALL LETTER E WITH ACUTE}.png"),
        ("x" * 500 + ".dcm", "dark/" + "x" * 197 + ".dcm"),
    ],
)
def test_a_name_in_the_zip_is_one_plain_name(tmp_path: Path, name: str, stored: str) -> None:
    assert exports.places(job_of(tmp_path, name)) == {0: stored}


def test_no_two_files_of_a_zip_share_a_name_whatever_they_are_called(tmp_path: Path) -> None:
    names = ("a.png", "a-2.png", "A.png", "a.png", "a-2.png", "a-3.png")
    stored = list(exports.places(job_of(tmp_path, *names)).values())
    assert len({each.casefold() for each in stored}) == len(names)
    assert {PurePosixPath(each).parts[0] for each in stored} == {"dark"}


def test_a_file_without_an_answer_stays_out_of_the_zip_and_in_the_table(tmp_path: Path) -> None:
    job = job_of(tmp_path, "answered.png", "waiting.png", "broken.png")
    job.items[1].outcome = None
    job.items[2].outcome = InvalidImageError("expected PNG, got text")
    assert exports.places(job) == {0: "dark/answered.png", 2: "_errors/broken.png"}
    rows = list(csv.DictReader(io.StringIO(exports.to_csv(job).decode("utf-8-sig"))))
    assert [row["status"] for row in rows] == ["ok", "waiting", "error"]
    assert rows[2]["error"] == "INVALID_IMAGE: expected PNG, got text"


def test_a_large_zip_leaves_in_pieces(tmp_path: Path) -> None:
    job = job_of(tmp_path, "a.png")
    job.path(job.items[0]).write_bytes(bytes(3 * 2**20))
    pieces = list(exports.bundle(job))
    assert max(map(len, pieces)) <= 2**19
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.read("medserve-results/dark/a.png") == bytes(3 * 2**20)
