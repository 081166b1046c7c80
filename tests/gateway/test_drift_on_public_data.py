"""The bar of the shipped references: foreign images raise an alarm, held-out ones none."""

from __future__ import annotations

import csv
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

import models
from benchmarks.drift import alarms_in, altered, first_alarm
from medserve.archive.reference import REFERENCE, Observed, Reference
from medserve.batch.asking import Answer
from medserve.batch.processes import ArchiveAsker
from medserve.gateway.core.watching import DriftTest
from tests.archives import packaged

pytestmark = [pytest.mark.data, pytest.mark.archive, pytest.mark.process]

_PACK = 50
_WITHIN = 200
_FILES = {"mednist": "MedNIST.tar.gz", "blood_cell": "PBC_128.tar.gz"}


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("MEDSERVE_DATA")
    if not folder:
        pytest.skip("MEDSERVE_DATA names no folder with the training data")
    return Path(folder)


@pytest.fixture(scope="module", params=["mednist", "blood_cell"])
def room(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ArchiveAsker]]:
    archive = packaged(request.param, tmp_path_factory.mktemp("store"))
    asker = ArchiveAsker(archive, workers=1)
    yield request.param, asker
    asker.close()


def members(archive: Path, wanted: Callable[[str], bool], count: int) -> list[bytes]:
    """Return the content of some of the files that are wanted, the same in every run."""
    with tarfile.open(archive) as packed:
        names = sorted(name for name in packed.getnames() if wanted(name))
        chosen = set(random.Random(0).sample(names, count))
    found = {}
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.name in chosen and (file := packed.extractfile(member)) is not None:
                found[member.name] = file.read()
    return [found[name] for name in random.Random(1).sample(sorted(found), count)]


def held_out(name: str, data: Path, count: int) -> list[bytes]:
    """Images of the room's validation set; the reference is of its test set."""
    with (models.room(name) / "weights" / "split.csv").open(encoding="utf-8") as file:
        paths = {row["path"] for row in csv.DictReader(file) if row["split"] == "validation"}
    return members(data / _FILES[name], lambda path: path.partition("/")[2] in paths, count)


def answers(asker: ArchiveAsker, images: Sequence[bytes]) -> list[Observed]:
    found: list[Observed] = []
    for first in range(0, len(images), _PACK):
        for each in asker.ask(images[first : first + _PACK], {}):
            assert isinstance(each, Answer)
            found.append(msgspec.convert(each.members, Observed))
    return found


def test_foreign_images_raise_an_alarm_and_held_out_ones_none(
    room: tuple[str, ArchiveAsker], data: Path
) -> None:
    name, asker = room
    content = (models.room(name) / "weights" / REFERENCE).read_bytes()
    reference = Reference.decode(content, name)
    images = held_out(name, data, 600)
    own = answers(asker, images)
    stream = random.Random(2).choices(own, k=10_000)
    assert alarms_in(DriftTest(reference), stream) == 0
    assert alarms_in(DriftTest(reference), sorted(own, key=lambda each: each.label)) == 0
    if name == "mednist":
        ultrasound = members(
            data / "US_BUSI_standin.tar.gz", lambda path: "/images/" in path, _WITHIN
        )
        foreign = [ultrasound, [altered(each, "blurred") for each in images[:_WITHIN]]]
    else:
        foreign = [[altered(each, "stained") for each in images[:_WITHIN]]]
    for drifted in foreign:
        test = DriftTest(reference)
        alarms_in(test, own)
        assert first_alarm(test, answers(asker, drifted)) is not None
