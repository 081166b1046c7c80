"""The node asks real models through a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medserve.dicom.ask import Gateway
from medserve.dicom.objects import make_objects
from medserve.dicom.rules import Kind, Rule, RuleTask
from medserve.dicom.spool import Task
from medserve.errors import InvalidImageError, PayloadTooLargeError, ServerUnreachableError
from tests.dicom.series import series, write
from tests.dicom.test_objects import loop

SIZE = (24, 20)  # columns, rows: models refuse less
TASK = Task(1, 1, "rule", "content", ("1.2.3",), "waiting", "", 0, 1e9)


@pytest.fixture
def gateway(address: str) -> Iterator[Gateway]:
    asked = Gateway(address, timeout_s=120.0)
    yield asked
    asked.close()


@pytest.mark.parametrize(
    ("rule", "kinds"),
    [
        (
            Rule(name="r", model="segmentation_3d", task=RuleTask.VOLUMES,
                 options={"flips": False}),
            [Kind.SEG, Kind.SR],
        ),
        (Rule(name="r", model="trus_prostate", task=RuleTask.FRAMES), [Kind.SEG, Kind.SR, Kind.SC]),
        (Rule(name="r", model="mednist", task=RuleTask.CLASSIFICATION), [Kind.SR]),
    ],
    ids=["volumes", "frames", "classification"],
)  # fmt: skip
def test_each_task_is_asked_and_its_objects_are_made(
    gateway: Gateway, tmp_path: Path, rule: Rule, kinds: list[Kind]
) -> None:
    contents = [loop()] if rule.task is RuleTask.FRAMES else series(1, 20, SIZE)
    files = write(tmp_path, contents)
    answer = gateway.ask(rule, files)
    assert answer.provenance.model == rule.model
    assert answer.provenance.archive_digest.startswith("sha256:")
    assert [each.kind for each in make_objects(TASK, rule, answer, files)] == kinds


def test_what_the_model_refuses_is_its_own_error(gateway: Gateway, tmp_path: Path) -> None:
    rule = Rule(name="r", model="segmentation_3d", task=RuleTask.VOLUMES)
    files = write(tmp_path, series(1, 20, SIZE))
    with pytest.raises(InvalidImageError, match="missing"):
        gateway.ask(rule, files[:9] + files[10:])


def test_a_series_over_the_limit_says_so(address: str, tmp_path: Path) -> None:
    rule = Rule(name="r", model="segmentation_3d", task=RuleTask.VOLUMES)
    small = Gateway(address, message_bytes=20_000)
    with pytest.raises(PayloadTooLargeError):
        small.ask(rule, write(tmp_path, series(1, slices=30)))
    small.close()


@pytest.mark.loopback
def test_nobody_at_the_address_is_an_error_that_passes(tmp_path: Path) -> None:
    rule = Rule(name="r", model="segmentation_3d", task=RuleTask.VOLUMES)
    nobody = Gateway("127.0.0.1:9", timeout_s=5.0)
    with pytest.raises(ServerUnreachableError):
        nobody.ask(rule, write(tmp_path, series(1)))
    nobody.close()
