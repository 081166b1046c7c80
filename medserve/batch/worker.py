"""One worker of a local batch: holds an archive and answers what comes through a pipe.

Run as a script: the code that answers is the archive's own, as behind a server, so nothing else of
medserve is imported here. A message is one line of JSON and then the bytes of each input; the reply
is a word and the answer. The process ends with its parent, which closes the pipe.

    python worker.py FOLDER RECEIVING_FD SENDING_FD
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

__all__ = ["load"]


def _main(folder: str, requests: Connection, replies: Connection) -> None:
    sys.path[0] = folder  # in the place of the folder of this script
    try:
        handler = load(folder)
    except Exception as error:
        replies.send_bytes(b"failed")
        replies.send_bytes(_text(error).encode())
        return
    replies.send_bytes(b"ready")
    replies.send_bytes(b"")
    context = SimpleNamespace(get_request_id=lambda index=0: None, metrics=None)
    with suppress(EOFError, BrokenPipeError):
        while True:
            asked = json.loads(requests.recv_bytes())
            payloads = {name: requests.recv_bytes() for name in asked["names"]}
            inputs = {**payloads, "params": json.dumps(asked["params"]).encode()}
            try:
                word, answer = b"answer", handler.handle([inputs], context)[0]
            except Exception as error:
                word, answer = b"failed", _text(error).encode()
            replies.send_bytes(word)
            replies.send_bytes(answer)


def load(folder: str) -> Any:
    """Return the archive's handler, proven as behind a server."""
    with open(f"{folder}/MAR-INF/MANIFEST.json", encoding="utf-8") as file:
        name = json.load(file)["model"]["modelName"]
    module = importlib.import_module(name)
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass)]
    [kind] = [each for each in classes if each.__module__ == name]
    handler: Any = kind()
    handler.initialize(
        SimpleNamespace(system_properties={"model_dir": folder}, model_yaml_config=None)
    )
    return handler


def _text(error: Exception) -> str:
    """Return the text "CODE: message" of what a handler raises; a bug's own text stays here."""
    code = getattr(error, "code", None)
    if isinstance(code, str):
        return f"{code}: {error}"
    if type(error).__name__ == "PredictionException":  # as handlers tell TorchServe
        return str(getattr(error, "message", error))
    return f"INTERNAL: {type(error).__name__} in the code of the archive"


if __name__ == "__main__":
    _main(
        sys.argv[1],
        Connection(int(sys.argv[2]), writable=False),
        Connection(int(sys.argv[3]), readable=False),
    )
