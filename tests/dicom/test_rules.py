from __future__ import annotations

from pathlib import Path

import pytest

from medserve.dicom.headers import Facts, read_facts
from medserve.dicom.peers import Sender, read_destination
from medserve.dicom.rules import Kind, Rules
from medserve.errors import ConfigError, InvalidImageError
from tests.dicom.series import series, write

PLAIN = '[[rule]]\nname = "r"\nmodel = "m"\ntask = "volumes"\n'


def rules(tmp_path: Path, text: str) -> Rules:
    path = tmp_path / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return Rules.read(path)


def image(**changes: object) -> Facts:
    known: dict[str, object] = {
        "sop_uid": "1.2.1",
        "sop_class": "1.2.840.10008.5.1.4.1.1.4",
        "study_uid": "1.2",
        "series_uid": "1.2.0",
        "identity": "",
        "modality": "MR",
        "series_description": "T1 MPRAGE sag",
        "protocol": "Head",
        "body_part": "brain",
        "image_type": ("ORIGINAL", "PRIMARY", "M"),
    }
    return Facts(**known | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("", True),
        ('modality = ["CT", "MR"]', True),
        ('modality = ["CT"]', False),
        ('series_description = ["*mprage*"]', True),
        ('series_description = ["mprage"]', False),
        ('protocol = ["HEAD", "NECK*"]', True),
        ('body_part = ["BRAIN"]', True),
        ('image_type = ["ORIGINAL", "M"]', True),
        ('image_type = ["DERIVED"]', False),
        ('calling = ["SCANNER"]', True),
        ('calling = ["OTHER"]', False),
        ('sop_class = ["1.2.840.10008.5.1.4.1.1.2"]', False),
    ],
)
def test_an_image_has_to_fit_every_condition(tmp_path: Path, condition: str, fits: bool) -> None:
    [rule] = rules(tmp_path, PLAIN + condition)
    assert rule.fits(image(), "SCANNER") is fits


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "rule"),
        (PLAIN + "colour = 1", "colour"),
        (PLAIN + 'results = ["sc"]', "of volumes, got sc"),
        (PLAIN + "deidentify = true", "a destination of the rule's own"),
        (PLAIN + "burned_in = true", "burned_in: expected it with deidentify"),
        (PLAIN + 'results = ["seg", "labelmap"]', "got both"),
        (PLAIN + 'results = ["sr"]', "refers to a segmentation"),
        (PLAIN + "options = {flips = 3}", "options"),
        (PLAIN + "options = {flipps = true}", "flipps"),
        (PLAIN + 'options = {format = "nifti"}', "follow from results"),
        (PLAIN + "images = [9, 3]", "fewest"),
        (PLAIN + 'destination = ["PACS"]', "AE@host:port"),
        (PLAIN + 'query = "https://pacs/studies"', "query"),
        (PLAIN + PLAIN, "name of its own"),
        (PLAIN + '[rule.inputs.T1]\nprotocol = ["t1"]', "inputs: expected two or more"),
        (PLAIN + "[rule.inputs.T1]\n[rule.inputs.T2]", r"inputs\.T1: expected modality"),
        (PLAIN + '[rule.inputs.T1]\ncalling = ["A"]', "calling"),
        (PLAIN.replace("volumes", "generation"), "task"),
        ("[[rule]", "rules.toml"),
    ],
)
def test_a_file_that_cannot_work_is_refused_with_the_place(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        rules(tmp_path, text)
    assert "rules.toml" in str(raised.value)


def test_each_task_has_results_of_its_own(tmp_path: Path) -> None:
    text = PLAIN + PLAIN.replace('"r"', '"f"').replace("volumes", "frames")
    volumes, frames = rules(tmp_path, text)
    assert volumes.kinds == (Kind.SEG, Kind.SR)
    assert frames.kinds == (Kind.SEG, Kind.SR, Kind.SC)


def test_destinations_are_archives_or_services() -> None:
    archive = read_destination("PACS@10.0.0.5:104")
    assert (archive.ae_title, str(archive.address)) == ("PACS", "10.0.0.5:104")
    assert read_destination("https://pacs/dicom-web/studies/").url.endswith("/studies")
    for wrong in ("PACS", "PACS@host", "A" * 17 + "@h:1", "@h:1", "https://u:p@pacs/studies"):
        with pytest.raises(ConfigError):
            read_destination(wrong)


@pytest.mark.parametrize(
    ("allowed", "calling", "address", "admitted"),
    [
        ("CT1", "CT1", "10.9.9.9", True),
        ("CT1", "CT2", "10.9.9.9", False),
        ("CT1@10.0.0.0/8", "CT1 ", "10.1.2.3", True),
        ("CT1@10.0.0.0/8", "CT1", "11.1.2.3", False),
        ("*@127.0.0.1", "ANY", "::ffff:127.0.0.1", True),
        ("*", "ANY", "fe80::1", True),
    ],
)
def test_a_sender_is_a_title_from_an_address(
    allowed: str, calling: str, address: str, admitted: bool
) -> None:
    assert Sender.parse(allowed).admits(calling, address) is admitted


def test_facts_are_read_without_the_pixels_and_without_names(tmp_path: Path) -> None:
    [path] = write(tmp_path, series(1)[:1])
    facts = read_facts(path)
    assert (facts.modality, facts.is_result) == ("MR", False)
    assert "Secret" not in str(facts)
    path.write_bytes(path.read_bytes()[:140])
    with pytest.raises(InvalidImageError) as raised:
        read_facts(path)
    assert raised.value.__suppress_context__
