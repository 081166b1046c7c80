from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.batch.local import of_shard
from medserve.batch.studies import Shard, Study, list_studies, study_key
from medserve.errors import ConfigError
from medserve.spec import Task

DICOM = b"\0" * 128 + b"DICM"
ROWS: list[dict[str, Any]] = [
    {"path": "a.nii.gz", "id": "first", "options": {"channel": 1}},
    {"path": "b.nii.gz", "id": None, "options": None},
    {"path": "s3://bucket/c.nii.gz", "id": "third", "options": None},
]
IDS = st.text(st.characters(exclude_categories=()), min_size=1, max_size=40)


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("path", "id", "options", "comment"))
        table.writeheader()
        for row in ROWS:
            told = json.dumps(row["options"]) if row["options"] else ""
            table.writerow({**row, "options": told, "comment": "not read"})


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS), encoding="utf-8")


def write_parquet(path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("m.csv", write_csv), ("m.jsonl", write_jsonl), ("m.parquet", write_parquet)],
    ids=["csv", "jsonl", "parquet"],
)
def test_the_rows_of_a_manifest_are_its_studies(tmp_path: Path, name: str, write: object) -> None:
    assert callable(write)
    write(tmp_path / name)
    assert list(list_studies(tmp_path / name, Task.VOLUMES)) == [
        Study("first", str(tmp_path / "a.nii.gz"), {"channel": 1}),
        Study("b.nii.gz", str(tmp_path / "b.nii.gz")),
        Study("third", "s3://bucket/c.nii.gz"),
    ]


def test_a_row_that_cannot_be_used_costs_no_other(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    lines = ["{", "[]", '{"id": "x"}', '{"path": "a\\u0000b"}', '{"path": "a", "options": 3}']
    manifest.write_text("\n".join([*lines, '{"path": "fine"}']), encoding="utf-8")
    found = list(list_studies(manifest, Task.VOLUMES))
    assert [bool(study.problem) for study in found] == [True] * 5 + [False]
    assert [study.id for study in found] == ["row 1", "row 2", "x", "row 4", "a", "fine"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("\ufeffpath\n0\n1\n", ["0", "1"]),
        ("path,id\r\n0,a\r\n\r\n1,b\r\n,\r\n", ["a", "b"]),
        ('path,id,comment\n0,a,"x\ny"\n1,"b\nc",\n', ["a", "b\nc"]),
        (",path,id\n7,0,a\n8,1,b\n", ["a", "b"]),
        ("path,id\n0,a,,\n1\n", ["a", "1"]),
        ("path,id\none,more,cell\n1,b\n", ["row 1", "b"]),
    ],
    ids=["BOM", "CRLF and empty rows", "line breaks in quotes", "a column without a name",
         "cells too few or empty", "cells too many"],
)  # fmt: skip
def test_a_csv_as_programs_write_it_loses_no_row(
    tmp_path: Path, content: str, found: list[str]
) -> None:
    (tmp_path / "m.csv").write_bytes(content.encode())
    assert [each.id for each in list_studies(tmp_path / "m.csv", Task.VOLUMES)] == found


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.csv", "path\n0\n".encode("utf-16"), "in UTF-8"),
        ("m.csv", "path\n0\n".encode("utf-16-be"), "in UTF-8"),
        ("m.jsonl", '{"path": "0"}\n'.encode("utf-16"), "in UTF-8"),
        ("m.csv", gzip.compress(b"path\n0\n"), "in UTF-8"),
        ("m.csv", b"path;id\n0;a\n", "with commas between"),
        ("m.csv", b"path,path\n0,1\n", "one column `path`, got 2"),
        ("m.csv", b"path, id\n0, a\n", "the column `id`, got ' id'"),
        ("m.csv", b"Path,id\n0,a\n", "the column `path`, got 'Path'"),
        ("m.csv", b'path,id\n0,"a\n1,b\n', "mend its quotes"),
    ],
)
def test_a_manifest_of_which_rows_or_names_would_be_lost_is_refused(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        list(list_studies(tmp_path / name, Task.VOLUMES))


def test_ids_are_text_numbers_or_dates(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    ids = ["7", "7.5", "true", "NaN", '["x"]', '{"a": 1}', "null", '""']
    lines = [f'{{"path": "a{place}", "id": {each}}}' for place, each in enumerate(ids)]
    manifest.write_text("\n".join([*lines, '{"path": "b", "ID": "c"}']), encoding="utf-8")
    found = [each.id for each in list_studies(manifest, Task.VOLUMES)]
    refused = [f"row {number}" for number in (3, 4, 5, 6)]
    assert found == ["7", "7.5", *refused, "a6", "a7", "row 9"]


def test_columns_of_parquet_may_be_of_any_type_of_text(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "path": arrow.array(["a", "b"]).dictionary_encode(),
        "id": arrow.array(["one", None], arrow.large_string()),
        "options": arrow.array([{"channel": 1, "overlay": None}, None]),
    }
    parquet.write_table(arrow.table(columns), tmp_path / "m.parquet", compression="zstd")
    first, second = list_studies(tmp_path / "m.parquet", Task.VOLUMES)
    assert (first.id, first.options, second.id) == ("one", {"channel": 1}, "b")
    many = arrow.table({"path": [str(number) for number in range(9000)]})
    parquet.write_table(many, tmp_path / "torn.parquet", compression="zstd")
    content = bytearray((tmp_path / "torn.parquet").read_bytes())
    content[50:250] = bytes(200)
    (tmp_path / "torn.parquet").write_bytes(content)
    with pytest.raises(ConfigError, match="expected a Parquet file"):
        list(list_studies(tmp_path / "torn.parquet", Task.VOLUMES))


@pytest.mark.parametrize("content", ["", "id\nx\n"], ids=["empty", "no column path"])
def test_a_table_without_paths_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a column `path`"):
        list(list_studies(tmp_path / "m.csv", Task.VOLUMES))


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.xlsx").touch()
    (tmp_path / "m.parquet").touch()
    for name in ("m.xlsx", "m.parquet", "missing.csv"):
        with pytest.raises(ConfigError):
            list(list_studies(tmp_path / name, Task.VOLUMES))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files, two series, something hidden, a link out and the folder of the answers."""
    root = tmp_path / "studies"
    for name in ("series/1.dcm", "series/sub/2.dcm", "deep/er/a.nii.gz", "b.nii.gz", "out/c.nii"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(DICOM if name.endswith("dcm") else b"content")
    (root / ".hidden.nii").touch()
    (tmp_path / "elsewhere.nii").touch()
    (root / "out of it.nii").symlink_to(tmp_path / "elsewhere.nii")
    (root / "within.nii").symlink_to(root / "b.nii.gz")
    (root / "loop.nii").symlink_to("loop.nii")
    (root / "root").symlink_to(root)
    os.mkfifo(root / "pipe.nii")
    return root


def test_a_folder_of_volumes_has_series_and_files(tree: Path) -> None:
    found = {each.id for each in list_studies(tree, Task.VOLUMES, without=tree / "out")}
    assert found == {"series", "deep/er/a.nii.gz", "b.nii.gz", "within.nii"}


def test_every_file_of_a_folder_of_images_is_a_study(tree: Path) -> None:
    found = {each.id for each in list_studies(tree, Task.CLASSIFICATION, without=tree / "out")}
    series = {"series/1.dcm", "series/sub/2.dcm"}
    assert found == series | {"deep/er/a.nii.gz", "b.nii.gz", "within.nii"}


def test_a_folder_that_is_one_series_is_one_study(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(DICOM)
    assert [each.id for each in list_studies(tmp_path, Task.VOLUMES)] == [tmp_path.name]


@given(st.lists(IDS, unique=True, max_size=60), st.integers(1, 7))
def test_shards_together_have_every_study_once(ids: list[str], count: int) -> None:
    studies = [Study(each, "file") for each in ids]
    shards = [list(of_shard(studies, Shard(index, count))) for index in range(count)]
    found = [study.id for shard in shards for study in shard]
    assert sorted(found) == sorted(ids)


@given(IDS)
def test_no_id_can_name_a_path(study_id: str) -> None:
    assert set(study_key(study_id)) <= set("0123456789abcdef")
    assert len(study_key(study_id)) == 32


def test_an_id_that_comes_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="got one twice"):
        list(of_shard([Study("a", "1"), Study("b", "2"), Study("a", "3")], Shard()))


@pytest.mark.parametrize(
    "text", ["", "1", "4/4", "-1/4", "1/0", "a/b", "1/4/2", "²/3", "0/" + "9" * 5000]
)
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected i/n"):
        Shard.parse(text)


@pytest.mark.cpu
def test_a_folder_with_45000_files_is_listed_one_by_one(tmp_path: Path) -> None:
    for number in range(45_000):
        os.close(os.open(f"{tmp_path}/{number}.nii.gz", os.O_CREAT | os.O_WRONLY))
    shards = [Shard(index, 4) for index in range(4)]
    counts = [sum(1 for _ in of_shard(list_studies(tmp_path, Task.VOLUMES), s)) for s in shards]
    assert sum(counts) == 45_000
    assert max(counts) - min(counts) < 1000  # equal parts, by chance


def test_numbered_files_of_a_folder_are_the_images_of_one_case(tmp_path: Path) -> None:
    names = ("a_0000.nii.gz", "a_0001.nii.gz", "deep/b_0001.nrrd", "deep/b_0000.nii", "c.nii.gz")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_studies(tmp_path, Task.VOLUMES, channels=("t1", "flair"))
    assert {each.id: [*each.images] for each in found} == {
        "a": ["0", "1"], "deep/b": ["0", "1"], "c.nii.gz": [],
    }  # fmt: skip
    assert len(list(list_studies(tmp_path, Task.VOLUMES))) == 5  # of a model that sees one image


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_name_the_images_of_a_case(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "one", "path": None, "t1": "a.nii", "flair": "s3://bucket/b.nii"},
        {"id": "two", "path": "both.nii", "t1": None, "flair": None},
        {"id": "three", "path": None, "t1": "a.nii", "flair": None},
        {"id": "four", "path": "both.nii", "t1": "a.nii", "flair": "b.nii"},
    ]
    path = tmp_path / f"m.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        arrow = pytest.importorskip("pyarrow", reason="the extra batch is not installed")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
    one, two, three, four = list_studies(path, Task.VOLUMES, channels=("t1", "flair"))
    assert one.images == {"t1": str(tmp_path / "a.nii"), "flair": "s3://bucket/b.nii"}
    assert (two.source, two.images) == (str(tmp_path / "both.nii"), {})
    for each in (three, four):
        assert "a path for each of t1, flair alone" in each.problem
