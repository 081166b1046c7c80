"""Files that do not travel within a request: they lie in a folder that gateway and workers share.

An archive that carries this module reads them; the gateway looks for it before it sends one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medserve.errors import InvalidRequestError, ServerFailedError

__all__ = ["KEY", "with_upload"]

KEY = "data_file"  # of the input map: the name of the file that stands for `data`
_FOLDER = "MEDSERVE_UPLOAD_DIR"
_NAME = re.compile(rb"[0-9a-f]{32}")  # drawn by the gateway: nobody else knows it, or leaves by it


def with_upload(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the inputs with the file itself as `data` where they name one.

    Raises:
        InvalidRequestError: what should name a file does not.
        ServerFailedError: the file is not there.
    """
    if KEY not in inputs:
        return inputs
    name, folder = inputs[KEY], os.environ.get(_FOLDER, "")
    if not isinstance(name, bytes | bytearray | memoryview) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{KEY}: expected the name that a gateway gives a file, got something else; send the "
            "file as data"
        )
    rest = {key: value for key, value in inputs.items() if key != KEY}
    if "data" in rest:
        raise InvalidRequestError(f"expected either data or {KEY}, got both")
    try:
        return {**rest, "data": Path(folder, bytes(name).decode()).read_bytes()}
    except OSError as error:
        raise ServerFailedError(
            f"expected the file of this request in the folder that {_FOLDER} names, got none "
            f"({error.strerror}); gateway and workers have to share that folder"
        ) from error
