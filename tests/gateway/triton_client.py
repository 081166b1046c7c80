"""A stock `tritonclient` as its users write it, in a process of its own.

python -m tests.gateway.triton_client ADDRESS HTTP_ADDRESS FOLDER

Its generated code declares the same messages as ours, so the two cannot share a process. Nothing
of medserve is imported here. What it got is printed as one JSON object.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-untyped]
import tritonclient.http as over_http  # type: ignore[import-untyped]

__all__: list[str] = []


def main(address: str, http_address: str, folder: Path) -> None:
    """Ask everything once."""
    client = triton.InferenceServerClient(address)
    report = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("tiny"),
        "server": client.get_server_metadata(as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "metadata": client.get_model_metadata("tiny", as_json=True),
        "classes": classify(client, "tiny", folder / "tiny"),
        "mask": segment(client, folder / "volume.nii"),
        "drawn": draw(address),
        "refused": refused(client),
        "config": client.get_model_config("tiny", as_json=True),
        "statistics": client.get_inference_statistics("tiny", as_json=True),
        "http": http(over_http.InferenceServerClient(http_address), folder),
    }
    if (folder / "mednist").is_dir():
        report["mednist"] = classify(client, "mednist", folder / "mednist")
    print(json.dumps(report))


def files_of(paths: list[Path]) -> Any:
    """Encoded files as the one input of a model."""
    contents = np.array([path.read_bytes() for path in paths], dtype=np.object_)
    data = triton.InferInput("data", list(contents.shape), "BYTES")
    data.set_data_from_numpy(contents)
    return data


def classify(client: Any, model: str, folder: Path) -> dict[str, Any]:
    """All files of a folder in one request."""
    result = client.infer(model, [files_of(sorted(folder.iterdir()))], request_id="42")
    probabilities = result.as_numpy("probabilities")
    return {
        "labels": [label.decode() for label in result.as_numpy("label")],
        "ids": result.as_numpy("class_id").tolist(),
        "status": [status.decode() for status in result.as_numpy("status")],
        "shape": probabilities.shape,
        "sums": np.nan_to_num(probabilities).sum(axis=1).round(4).tolist(),
        "id": result.get_response().id,
    }


def segment(client: Any, path: Path) -> dict[str, Any]:
    """One volume; the voxels of its mask."""
    wanted = [triton.InferRequestedOutput(name) for name in ("mask", "affine", "volumes_ml")]
    result = client.infer(
        "tiny_volume", [files_of([path])], outputs=wanted, parameters={"largest_component": False}
    )
    mask = result.as_numpy("mask")
    return {
        "mask": mask.tolist(),
        "type": str(mask.dtype),
        "affine": result.as_numpy("affine").tolist(),
        "volumes_ml": result.as_numpy("volumes_ml").tolist(),
        "names": [output.name for output in result.get_response().outputs],
    }


def draw(address: str) -> dict[str, Any]:
    """Images over a stream, with what comes before them."""
    answers: queue.Queue[Any] = queue.Queue()
    client = triton.InferenceServerClient(address)
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer("sketcher", [], parameters={"n": 2, "seed": 5})
    previews = []
    while True:
        result, error = answers.get(timeout=60)
        if error is not None:
            raise error
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
        previews.append(len(result.as_numpy("preview_png")[0]))
    client.stop_stream()
    return {
        "previews": previews,
        "images": [image.hex() for image in result.as_numpy("images")],
        "seeds": result.as_numpy("seeds").tolist(),
    }


def http(client: Any, folder: Path) -> dict[str, Any]:
    """Everything once over HTTP, with binary tensors and with tensors inside JSON."""
    paths = sorted((folder / "tiny").iterdir())
    contents = np.array([path.read_bytes() for path in paths], dtype=np.object_)
    data = over_http.InferInput("data", list(contents.shape), "BYTES")
    data.set_data_from_numpy(contents, binary_data=True)
    result = client.infer("tiny", [data], request_id="42", model_version="1.0")
    inside = [over_http.InferRequestedOutput("label", binary_data=False)]
    inside.append(over_http.InferRequestedOutput("class_id", binary_data=False))
    in_json = client.infer("tiny", [data], outputs=inside)
    try:
        client.infer("nobody", [data])
    except over_http.InferenceServerException as error:
        printed = str(error)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready() and client.is_model_ready("tiny"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata("tiny"),
        "config": client.get_model_config("tiny"),
        "statistics": client.get_inference_statistics("tiny"),
        "index": client.get_model_repository_index(),
        "labels": [label.decode() for label in result.as_numpy("label")],
        "shape": result.as_numpy("probabilities").shape,
        "id": result.get_response()["id"],
        "labels_in_json": [str(label) for label in in_json.as_numpy("label")],
        "ids_in_json": in_json.as_numpy("class_id").tolist(),
        "printed": printed,
    }


def refused(client: Any) -> str:
    """What an unknown model is answered with."""
    try:
        client.get_model_metadata("nobody")
    except triton.InferenceServerException as error:
        return str(error.status())
    return "answered"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
