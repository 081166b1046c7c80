"""The adapter against TorchServe's own Python classes, without its Java part."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from handlers import torchserve
from handlers.base import Handler
from handlers.batched import BatchedHandler
from handlers.mednist import MednistHandler
from medserve.errors import ConfigError, InvalidImageError
from medserve.imaging.codecs.payload import Payload
from medserve.inference.engines import Outputs
from tests.artifacts import BRIGHTNESS_CONFIG
from tests.handlers.worker import FakeContext, context, picture, unpacked

service = pytest.importorskip("ts.service", reason="needs the serve extra")

METRICS = """
model_metrics:
  counter:
    - {name: MedserveItems, unit: Count, dimensions: [Status, ModelName, Level]}
  histogram:
    - {name: MedserveRequestSeconds, unit: seconds, dimensions: [ModelName, Level]}
"""


class VolumeLike(BatchedHandler[bytes, None, bytes]):
    """Answers with the file itself and raises errors, as handlers of volumes do."""

    raises_errors: ClassVar[bool] = True
    max_items: ClassVar[int] = 1

    def parse_params(self, params: Mapping[str, object]) -> None:
        """Nothing to ask for."""

    def decode(self, payload: Payload) -> bytes:
        """The file, unless it starts with a zero."""
        if payload[:1] == b"\0":
            raise InvalidImageError("expected a volume, got zeros")
        return bytes(payload)

    def to_network(self, source: bytes) -> npt.NDArray[np.float32]:
        """An even plane as bright as the first byte."""
        return np.full((1, 64, 64), source[0] / 255, np.float32)

    def from_network(self, outputs: Outputs) -> bytes:
        """The bare logits."""
        return outputs["logits"].tobytes()

    def encode(self, result: bytes, params: None) -> bytes:
        """A mask, as it were."""
        return b"MASK" + result


class Socket:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, message: bytes) -> None:
        """Like `socket.socket.sendall`."""
        self.sent += message


def torchserve_service(handler: Handler[Any], folder: Path, tmp_path: Path) -> Any:
    """TorchServe's own worker-side service around a handler."""
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

    (tmp_path / "metrics.yaml").write_text(METRICS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TorchServe leaves the file open
        metrics = MetricsCacheYamlImpl(str(tmp_path / "metrics.yaml"))
    metrics.initialize_cache()
    made = service.Service(
        "brightness", str(folder), {}, handler.handle, None, 16, metrics_cache=metrics
    )
    made.set_cl_socket(Socket())
    return made


def gathered(*inputs: dict[str, bytes]) -> list[dict[str, Any]]:
    """A batch in the form that TorchServe reads off its socket."""
    return [
        {
            "requestId": f"id-{index}".encode(),
            "parameters": [
                {"name": key, "value": bytearray(value), "contentType": ""}
                for key, value in each.items()
            ],
        }
        for index, each in enumerate(inputs)
    ]


def status_code(message: bytearray) -> int:
    code: int = struct.unpack("!i", message[:4])[0]
    return code


@pytest.fixture
def volumes(artifact: Path, tmp_path: Path) -> Handler[Any]:
    folder = unpacked(artifact, tmp_path)
    golden = np.full((1, 1, 64, 64), 200 / 255, np.float32)
    handler = VolumeLike()
    (folder / "golden_input.png").write_bytes(b"\xc8")
    config = BRIGHTNESS_CONFIG | {"batchSize": 1}
    with pytest.MonkeyPatch.context() as patch:
        from medserve.inference.engines import load_engine
        from medserve.spec import EngineName

        expected = load_engine(EngineName.OPENVINO, folder).run(golden)
        arrays: dict[str, Any] = {"tolerance": 1e-4, **expected}
        np.savez(folder / "golden_output.npz", **arrays)
        patch.setenv("MEDSERVE_ENGINE_THREADS", "1")
        handler.initialize(context(folder, config))
    return handler


def test_torchserve_accepts_the_batch_and_its_metrics(
    handler: MednistHandler, artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="ts")
    made = torchserve_service(handler, artifact, tmp_path)
    message = made.predict(gathered({"data": picture(0.1)}, {"data": b"text"}))
    assert status_code(message) == 200
    assert b'"label":"dark"' in message
    assert b'"code":"INVALID_IMAGE"' in message
    lines = [record.getMessage() for record in caplog.records if "Medserve" in record.getMessage()]
    seconds, good, bad = sorted(lines, key=lambda line: ("Items" in line, "INVALID" in line))
    assert seconds.startswith("[METRICS]MedserveRequestSeconds.seconds:0.")
    assert "|#ModelName:brightness,Level:Model|#type:HISTOGRAM" in seconds
    assert "MedserveItems.Count:1|#Status:ok,ModelName:brightness,Level:Model" in good
    assert "#Status:INVALID_IMAGE,ModelName:brightness" in bad


def test_a_worker_logs_nothing_per_batch_but_own_metrics(
    handler: MednistHandler, artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ts.protocol import otf_message_handler

    made = torchserve_service(handler, artifact, tmp_path)
    caplog.set_level("INFO")
    otf_message_handler.logging.info("Backend received inference at: %d", 0)
    made.predict(gathered({"data": picture(0.1)}))
    lines = [record.getMessage() for record in caplog.records]
    assert lines
    assert all(line.startswith("[METRICS]Medserve") for line in lines)


def test_the_header_that_ends_a_stream_reaches_torchserve(
    handler: MednistHandler, artifact: Path, tmp_path: Path
) -> None:
    made = torchserve_service(handler, artifact, tmp_path)
    plain = made.predict(gathered({"data": picture(0.1)}))
    marked = made.predict(gathered({"data": picture(0.1), "transport": b"grpc"}))
    assert b"ts_stream_next" not in plain
    assert b"ts_stream_next" + struct.pack("!i", 5) + b"false" in marked


def test_undeclared_metrics_cost_no_answer(handler: MednistHandler) -> None:
    from ts.metrics.metric_cache_errors import MetricsCacheKeyError

    class Empty:
        def get_metric(self, name: str, kind: object) -> object:
            raise MetricsCacheKeyError(name)

    raw = handler.handle([{"data": bytearray(picture(0.1))}], FakeContext({}, metrics=Empty()))
    assert json.loads(raw[0])["status"] == "ok"


def test_a_volume_is_answered_by_the_bare_file(volumes: VolumeLike) -> None:
    (answer,) = volumes.handle([{"data": bytearray(b"\xc8")}], FakeContext({}))
    assert answer.startswith(b"MASK")


@pytest.mark.parametrize(
    ("inputs", "code", "text"),
    [
        ({"data": b"\0\0"}, 400, b"INVALID_IMAGE: expected a volume, got zeros"),
        ({"data.0": b"\xc8"}, 400, b"INVALID_REQUEST: expected one file a call"),
        ({"data": b"\xc8", "deadline_ms": b"0"}, 504, b"DEADLINE_EXCEEDED: "),
        ({"data": b""}, 500, b"INTERNAL: internal error, reference id-0"),
    ],
)
def test_an_error_of_a_volume_becomes_a_status_with_its_code(
    volumes: VolumeLike,
    tmp_path: Path,
    inputs: dict[str, bytes],
    code: int,
    text: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = torchserve_service(volumes, tmp_path, tmp_path).predict(gathered(inputs))
    assert status_code(message) == code
    assert text in message
    assert "During handling" not in caplog.text  # TorchServe logs what it catches


def test_an_oversized_volume_answer_is_raised_too(
    volumes: VolumeLike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "_max_response_bytes", 5)
    message = torchserve_service(volumes, tmp_path, tmp_path).predict(gathered({"data": b"\xc8"}))
    assert status_code(message) == 413


def test_a_handler_that_raises_refuses_to_share_a_batch(artifact: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected batchSize 1.*got 16"):
        VolumeLike().initialize(context(artifact))


def test_a_chunk_goes_out_before_the_answer(
    handler: MednistHandler, artifact: Path, tmp_path: Path
) -> None:
    def streaming(data: Any, worker: Any) -> list[bytes]:
        torchserve.send_chunk(worker, [b"half a picture"])
        torchserve.end_stream(worker, 0)
        return [b"the picture"]

    made = torchserve_service(handler, artifact, tmp_path)
    made._entry_point = streaming
    last = made.predict(gathered({"data": b"", "stream": b"1"}))
    assert b"half a picture" in made.cl_socket.sent
    assert b"ts_stream_next" + struct.pack("!i", 4) + b"true" in made.cl_socket.sent
    assert b"the picture" in last
    assert b"ts_stream_next" + struct.pack("!i", 5) + b"false" in last
