"""The DICOMweb face, asked by dicomweb-client, which knows nothing of this node, and by hand."""

from __future__ import annotations

import http.client
import io
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGExtended12Bit, RTStructureSetStorage

from medserve.dicom.intake import COERCED, NO_ROOM, UNREADABLE, IncomingFile, Intake
from medserve.dicom.pull import fetch
from medserve.dicom.send import trusting
from medserve.dicom.spool import MadeObject, Spool, Wanted, content_of
from medserve.dicom.web.app import SCOPE, WebLimits, create_app
from medserve.dicom.web.parts import Parts
from medserve.dicom.web.server import WebServer
from medserve.errors import MedserveError
from medserve.gateway.core.tls import CertificateFiles
from medserve.gateway.core.tokens import TokenFile, add_token, new_token
from medserve.settings import Address
from tests.client.certificates import HAVE_OPENSSL, self_signed
from tests.dicom.series import series
from tests.volume_phantoms import as_bytes

KIND = 'multipart/related; type="application/dicom"; boundary=mark'
MOST_BYTES = 2**20


class Face:
    """A web face whose room a test decides on."""

    def __init__(
        self,
        folder: Path,
        tokens: TokenFile | None = None,
        certificates: CertificateFiles | None = None,
    ) -> None:
        self.spool = Spool(folder / "state")
        self.has_room = True
        self.arrived: list[str] = []
        intake = Intake(self.spool, lambda: self.has_room, self.arrived.append)
        limits = WebLimits(MOST_BYTES, ("127.0.0.1", "localhost"))
        self.server = WebServer(
            create_app(self.spool, intake, tokens, limits), Address("127.0.0.1", 0), certificates
        )
        self.server.start()
        self.url = f"http://{self.server.address}/dicom-web"

    def post(self, body: bytes, kind: str = KIND, study: str = "", **headers: str) -> Any:
        """Send a body to STOW-RS."""
        url = f"{self.url}/studies" + (f"/{study}" if study else "")
        return requests.post(url, body, headers={"Content-Type": kind, **headers}, timeout=30)

    def images(self) -> int:
        """Return how many images are kept."""
        return sum(len(self.spool.images(each.id)) for each in self.spool.open_series())

    def stop(self) -> None:
        """Close port and folder."""
        self.server.stop()
        self.spool.close()


@pytest.fixture
def face(tmp_path: Path) -> Iterator[Face]:
    running = Face(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def client(face: Face) -> DICOMwebClient:
    return DICOMwebClient(url=face.url)


def body(files: Sequence[bytes], kind: str = "application/dicom") -> bytes:
    parts = [f"--mark\r\nContent-Type: {kind}\r\n\r\n".encode() + each for each in files]
    return b"\r\n".join([*parts, b"--mark--\r\n"])


def datasets(number: int) -> list[Dataset]:
    return [dcmread(io.BytesIO(each)) for each in series(number)]


def reasons(answer: Any) -> list[int]:
    failed = answer.json().get("00081198", {"Value": []})["Value"]
    return [each["00081197"]["Value"][0] for each in failed]


def stored(answer: Any) -> int:
    return len(answer.json().get("00081199", {"Value": []})["Value"])


pytestmark = pytest.mark.loopback


# STOW-RS


def test_a_study_goes_in_and_comes_out_as_it_was(face: Face, client: DICOMwebClient) -> None:
    sent = datasets(1)
    answer = client.store_instances(sent)
    assert len(answer.ReferencedSOPSequence) == 5
    assert "FailedSOPSequence" not in answer
    assert face.arrived == [sent[0].SeriesInstanceUID] * 5
    back = client.retrieve_study(sent[0].StudyInstanceUID)
    assert {as_bytes(each) for each in back} == {as_bytes(each) for each in sent}


def test_what_was_acknowledged_is_there_after_a_restart(face: Face, tmp_path: Path) -> None:
    assert face.post(body(series(1))).status_code == 200
    face.stop()
    again = Face(tmp_path)
    assert again.images() == 5
    face.spool, face.server = again.spool, again.server  # stopped by the fixture


def test_the_same_object_is_taken_again_and_another_of_its_name_is_warned_of(face: Face) -> None:
    files = series(1)
    for _ in range(2):
        assert face.post(body(files)).status_code == 200
    changed = dcmread(io.BytesIO(files[0]))
    changed.InstanceNumber = 77
    answer = face.post(body([as_bytes(changed)]))
    assert (answer.status_code, stored(answer)) == (202, 1)
    assert answer.json()["00081199"]["Value"][0]["00081196"]["Value"] == [COERCED]
    assert len(face.arrived) == 5


def test_objects_that_cannot_be_stored_are_named_beside_those_that_are(face: Face) -> None:
    files = series(1)
    other = dcmread(io.BytesIO(files[0]))
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    extended = dcmread(io.BytesIO(files[1]))
    extended.PixelData = encapsulate([b"jpeg"])
    extended.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    answer = face.post(body([files[2], b"no object", as_bytes(other), as_bytes(extended)]))
    assert (answer.status_code, stored(answer)) == (202, 1)
    assert reasons(answer) == [UNREADABLE, 0x0122, 0xC122]
    assert face.images() == 1
    assert face.post(body([b"no object"])).status_code == 409


def test_an_object_of_another_study_than_the_path_names_is_refused(face: Face) -> None:
    files = series(1)
    study = dcmread(io.BytesIO(files[0])).StudyInstanceUID
    answer = face.post(body([*files, series(2)[0]]), study=study)
    assert (answer.status_code, stored(answer), reasons(answer)) == (202, 5, [0x0110])
    assert face.post(body(files), study="1.2.3").status_code == 409


def test_where_there_is_no_room_the_sender_is_asked_to_come_again(face: Face) -> None:
    face.has_room = False
    answer = face.post(body(series(1)))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
    face.has_room = True
    assert face.post(body(series(1))).status_code == 200


def test_a_disk_that_is_full_is_503_and_leaves_nothing(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = os.write

    def full(descriptor: int, data: bytes) -> int:
        if "receiving" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        return writes(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        answer = face.post(body(series(1)))
    assert (answer.status_code, reasons(answer)) == (503, [NO_ROOM] * 5)
    assert list(face.spool.receiving.iterdir()) == []
    assert face.post(body(series(1))).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (body([]), KIND, 400),
        (b"", KIND, 400),
        (b"--other\r\n\r\nx\r\n--other--\r\n", KIND, 400),
        (body(series(1))[:-20], KIND, 400),
        (body(series(1)), 'multipart/related; type="application/dicom"', 400),
        (body(series(1)), 'multipart/related; type="application/dicom+json"; boundary=mark', 415),
        (body(series(1), "application/dicom+json"), KIND, 415),
        (series(1)[0], "application/dicom", 415),
        (body([bytes(MOST_BYTES)]), KIND, 413),
        (b"--mark\r\n" + b"x" * 500_000 + b": y\r\n\r\nz\r\n--mark--\r\n", KIND, 400),
    ],
    ids=[
        "no part",
        "empty",
        "boundary",
        "cut",
        "none",
        "type",
        "part",
        "single",
        "large",
        "header",
    ],
)
def test_a_body_that_is_none_is_refused_and_leaves_no_file(
    face: Face, content: bytes, kind: str, status: int
) -> None:
    assert face.post(content, kind).status_code == status
    assert list(face.spool.receiving.iterdir()) == []


def test_a_large_body_that_states_no_size_is_cut_off(face: Face) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"--mark\r\nContent-Type: application/dicom\r\n\r\n"
        for _ in range(200):
            yield bytes(2**16)

    answer = face.post(pieces())  # type: ignore[arg-type]
    assert answer.status_code == 413
    assert list(face.spool.receiving.iterdir()) == []


def test_a_sender_that_goes_away_loses_only_what_was_not_whole(face: Face) -> None:
    whole = body(series(1))
    connection = http.client.HTTPConnection(str(face.server.address))
    connection.putrequest("POST", "/dicom-web/studies")
    connection.putheader("Content-Type", KIND)
    connection.putheader("Content-Length", str(len(whole)))
    connection.endheaders(whole[: len(whole) // 2])
    while not face.arrived:
        time.sleep(0.01)
    connection.close()
    face.stop()
    assert list((face.spool.folder / "receiving").iterdir()) == []
    again = Face(face.spool.folder.parent)
    assert 0 < again.images() < 5
    face.spool, face.server = again.spool, again.server


def test_many_senders_do_not_disturb_each_other(face: Face) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(
            target=lambda number=number: codes.append(face.post(body(series(number))).status_code)
        )
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 8
    assert face.images() == 40


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 64))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_arrive_whole_however_the_body_is_cut(
    tmp_path: Path, contents: list[bytes], size: int
) -> None:
    whole = body(contents)
    parts = Parts(b"mark", tmp_path)
    for start in range(0, len(whole), size):
        parts.feed(whole[start : start + size])
    if not any(b"\r\n--mark" in b"\r\n" + each for each in contents):
        parts.finish()
        assert [Path(each.name).read_bytes() for each in parts.complete] == contents
    parts.close()
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=400))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_after_a_boundary_is_an_object_or_an_error_and_leaves_no_file(
    tmp_path: Path, content: bytes
) -> None:
    parts = Parts(b"mark", tmp_path)
    try:
        parts.feed(b"--mark" + content)
        parts.finish()
    except MedserveError:
        pass
    parts.close()
    assert list(tmp_path.iterdir()) == []


# QIDO-RS and WADO-RS


def add_result(face: Face) -> Dataset:
    """Let the spool have a result of the one series in it."""
    [found] = face.spool.open_series()
    uids = tuple(sorted(each.facts.sop_uid for each in face.spool.images(found.id)))
    face.spool.settle(found, [Wanted("rule", uids, "")])
    [task] = face.spool.tasks("waiting")
    assert task.content == content_of(uids)
    result = dcmread(io.BytesIO(series(1)[0]))
    result.SOPInstanceUID = result.file_meta.MediaStorageSOPInstanceUID = UID("2.25.9")
    result.SeriesInstanceUID, result.Modality = "2.25.8", "SEG"
    file = face.spool.receiving / "result"
    file.write_bytes(as_bytes(result))
    made = MadeObject("2.25.9", result.SOPClassUID, "2.25.8", "seg", file)
    assert face.spool.finish(task, [made], [])
    return result


def test_studies_series_and_instances_are_found(face: Face, client: DICOMwebClient) -> None:
    for number in (1, 2):
        client.store_instances(datasets(number))
    [first] = [Dataset.from_json(each) for each in
               client.search_for_studies(search_filters={"PatientID": "S1-1"})]  # fmt: skip
    assert str(first.PatientName) == "Secret^Name1"
    assert (first.NumberOfStudyRelatedSeries, first.NumberOfStudyRelatedInstances) == (1, 5)
    assert first.ModalitiesInStudy == "MR"
    assert len(client.search_for_studies()) == 2
    [series_1] = client.search_for_series(first.StudyInstanceUID)
    assert series_1["00201209"]["Value"] == [5]
    assert len(client.search_for_instances(first.StudyInstanceUID)) == 5
    assert len(client.search_for_instances(limit=7)) == 7
    assert len(client.search_for_instances(limit=7, offset=6)) == 4


@pytest.mark.parametrize(
    ("key", "value", "number"),
    [
        ("PatientName", "secret^*2", 1),
        ("00100020", "S1-?", 2),
        ("ModalitiesInStudy", "CT", 0),
        ("ModalitiesInStudy", "MR", 2),
        ("StudyDate", "20200101-", 0),  # they have none
        ("PatientID", "S1-[12]", 0),  # no such wildcard
    ],
)
def test_values_are_matched(
    face: Face, client: DICOMwebClient, key: str, value: str, number: int
) -> None:
    for each in (1, 2):
        client.store_instances(datasets(each))
    assert len(client.search_for_studies(search_filters={key: value})) == number


def test_a_key_that_is_not_known_finds_nothing_of_others(face: Face) -> None:
    face.post(body(series(1)))
    answer = requests.get(f"{face.url}/studies?PatientWeight=70", timeout=30)
    assert answer.status_code == 400
    assert "PatientID" in answer.json()["error"]["message"]


def test_results_are_found_and_retrieved_beside_the_images(
    face: Face, client: DICOMwebClient
) -> None:
    client.store_instances(datasets(1))
    result = add_result(face)
    [study] = client.search_for_studies()
    assert sorted(study["00080061"]["Value"]) == ["MR", "SEG"]
    assert len(client.search_for_studies(search_filters={"ModalitiesInStudy": "SEG"})) == 1
    uid = study["0020000D"]["Value"][0]
    assert len(client.retrieve_study(uid)) == 6
    back = client.retrieve_instance(uid, result.SeriesInstanceUID, result.SOPInstanceUID)
    assert as_bytes(back) == as_bytes(result)
    [header] = client.retrieve_series_metadata(uid, result.SeriesInstanceUID)
    assert header["00080060"]["Value"] == ["SEG"]
    assert "7FE00010" not in header


def test_what_was_deleted_is_found_no_more(face: Face, client: DICOMwebClient) -> None:
    client.store_instances(datasets(1))
    [found] = face.spool.open_series()
    study = datasets(1)[0].StudyInstanceUID
    face.spool.drop_bytes(found.id)
    assert client.search_for_studies() == []
    assert requests.get(f"{face.url}/studies/{study}", timeout=30).status_code == 404


def test_forms_that_there_are_not_are_not_acceptable(face: Face) -> None:
    face.post(body(series(1)))
    study = datasets(1)[0].StudyInstanceUID

    def ask(path: str, accept: str) -> int:
        return requests.get(face.url + path, headers={"Accept": accept}, timeout=30).status_code

    whole = 'multipart/related; type="application/dicom"'
    assert ask("/studies", "application/dicom+xml") == 406
    for resource in ("/series", "/instances", f"/studies/{study}/series"):
        assert ask(resource, 'multipart/related; type="application/dicom+xml"') == 406
    assert ask(f"/studies/{study}/metadata", "application/dicom+xml") == 406
    assert ask(f"/studies/{study}/metadata", "application/dicom+json") == 200
    assert ask(f"/studies/{study}", "image/jpeg") == 406
    assert ask(f"/studies/{study}", f"{whole}; transfer-syntax=1.2.840.10008.1.2.4.90") == 406
    assert ask(f"/studies/{study}", f"{whole}; transfer-syntax=1.2.840.10008.1.2.1") == 200
    assert ask(f"/studies/{study}", f"{whole}; transfer-syntax=*") == 200
    assert face.post(body(series(1)), Accept="application/dicom+xml").status_code == 406
    assert ask("/studies/../etc", "*/*") == 404
    assert ask("/studies/1.2.x", "*/*") == 400


# Who may


def test_only_tokens_for_dicom_are_let_in(tmp_path: Path) -> None:
    tokens = {}
    for name, scopes in (("pacs", (SCOPE,)), ("all", ("*",)), ("ward", ("mednist",))):
        tokens[name], entry = new_token(name, scopes)
        add_token(tmp_path / "tokens.json", entry)
    face = Face(tmp_path, TokenFile(tmp_path / "tokens.json"))
    try:
        for path in (
            "",
            "/1.2.3",
            "/1.2.3/metadata",
            "/1.2.3/series",
            "/1.2.3/series/1.2/instances",
        ):
            answer = requests.get(f"{face.url}/studies{path}", timeout=30)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        codes = {
            name: face.post(body(series(1)), Authorization=f"Bearer {token}").status_code
            for name, token in tokens.items()
        }
        assert codes == {"pacs": 200, "all": 200, "ward": 403}
        assert face.post(body(series(1)), Authorization="Bearer ms_x_y").status_code == 401
    finally:
        face.stop()


@pytest.mark.skipif(not HAVE_OPENSSL, reason="makes certificates with openssl")
def test_over_tls_only_certificates_of_the_authority_are_let_in(tmp_path: Path) -> None:
    own, sender, other = (self_signed(tmp_path, name) for name in ("node", "sender", "other"))
    face = Face(tmp_path, certificates=CertificateFiles(*own, client_ca=sender[0]))
    url = f"https://localhost:{face.server.address.port}/dicom-web"
    files = series(1)
    study = dcmread(io.BytesIO(files[0])).StudyInstanceUID
    try:
        answer = requests.post(
            f"{url}/studies", body(files), headers={"Content-Type": KIND}, timeout=30,
            cert=(str(sender[0]), str(sender[1])), verify=str(own[0]),
        )  # fmt: skip
        assert answer.status_code == 200
        fetched = fetch(url, study, None, tmp_path, tls=trusting(own[0], *sender))
        assert sorted(each.read_bytes() for each in fetched) == sorted(files)
        for tls in (trusting(own[0]), trusting(own[0], *other), trusting(), None):
            with pytest.raises(MedserveError):  # TLS 1.3 tells after the handshake
                fetch(url, study, None, tmp_path, tls=tls)
    finally:
        face.stop()


def test_a_page_of_another_site_does_not_get_in_by_a_name_of_its_own(face: Face) -> None:
    answer = requests.get(f"{face.url}/studies", headers={"Host": "evil.example"}, timeout=30)
    assert answer.status_code == 400


def test_no_log_names_a_patient(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    face.post(body([*series(1), b"no object"]))
    requests.get(f"{face.url}/studies?PatientName=Secret*", timeout=30)
    face.post(body(series(2)), study="1.2.3")
    said = json.dumps([each.getMessage() for each in caplog.records])
    assert not [secret for secret in ("Secret", "S1-", "2.25.") if secret in said]


def test_an_incoming_file_that_fails_keeps_nothing(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path)
    file.write(b"x" * 100)
    file.fail(OSError(28, "full"))
    file.write(b"y" * 100)
    assert Path(file.name).stat().st_size == 0
    file.close()
