"""The node asks real models through a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medserve.client import SegmentedFile
from medserve.dicom.ask import Gateway
from medserve.dicom.objects import make_objects
from medserve.dicom.rules import Kind, Rule, RuleTask
from medserve.dicom.spool import Task
from medserve.errors import InvalidImageError, PayloadTooLargeError, ServerUnreachableError
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from tests.dicom.series import series, write
from tests.dicom.test_objects import loop
from tests.servers import Servers
from tests.volume_phantoms import as_bytes, dicom_slices

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
    assert [each.kind for each in make_objects(TASK, rule, answer, files, tmp_path)] == kinds


def test_what_the_model_refuses_is_its_own_error(gateway: Gateway, tmp_path: Path) -> None:
    rule = Rule(name="r", model="segmentation_3d", task=RuleTask.VOLUMES)
    files = write(tmp_path, series(1, 20, SIZE))
    with pytest.raises(InvalidImageError, match="missing"):
        gateway.ask(rule, files[:9] + files[10:])


def noisy_series() -> list[bytes]:
    """Return 40 slices that no zip makes small: 2.5 MB."""
    noise = np.random.default_rng(3).integers(0, 1000, (180, 180, 40), dtype=np.int16)
    volume = Volume(noise, Geometry(noise.shape, np.diag((1.0, 1.0, 1.0, 1.0))))
    return [as_bytes(each) for each in dicom_slices(volume)]


@pytest.mark.parametrize("shares", [True, False], ids=["shared folder", "messages alone"])
def test_a_series_larger_than_a_message_is_answered_where_gateway_and_workers_share_a_folder(
    servers: Servers, tmp_path: Path, shares: bool
) -> None:
    folder = servers.backend.upload_dir
    behind = servers.gateway(max_message_mb=1, upload_dir=folder if shares else None)
    asked = Gateway(behind.addresses.grpc, timeout_s=120.0)
    rule = Rule(name="r", model="tiny_volume", task=RuleTask.VOLUMES)
    files = write(tmp_path, noisy_series())
    if shares:
        [found] = asked.ask(rule, files).found
        assert isinstance(found, SegmentedFile)
        assert sum(each.voxels for each in found.measures) > 0
        assert folder is not None
        assert list(folder.iterdir()) == []
    else:
        with pytest.raises(PayloadTooLargeError):
            asked.ask(rule, files)
    asked.close()


@pytest.mark.loopback
def test_nobody_at_the_address_is_an_error_that_passes(tmp_path: Path) -> None:
    rule = Rule(name="r", model="segmentation_3d", task=RuleTask.VOLUMES)
    nobody = Gateway("127.0.0.1:9", timeout_s=5.0)
    with pytest.raises(ServerUnreachableError):
        nobody.ask(rule, write(tmp_path, series(1)))
    nobody.close()
