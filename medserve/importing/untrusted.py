"""Read files that others wrote as data: JSON, YAML and tensors, and nothing that runs."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from medserve.errors import ConfigError

__all__ = ["plain_text", "read_checkpoint", "read_json"]

_MAX_JSON_BYTES = 64 * 2**20
_MAX_TEXT = 60  # characters; a number may come behind
_MAX_YAML_BYTES = 2**20  # it is read a hundred times slower


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Read a file of JSON, or of YAML where its name says so, that holds an object.

    Args:
        path: Of the file.
        hint: What to do where it is missing.

    Raises:
        ConfigError: there is none, it is too large or holds something else.
    """
    is_yaml = path.suffix in (".yaml", ".yml")
    limit, kind = (_MAX_YAML_BYTES, "YAML") if is_yaml else (_MAX_JSON_BYTES, "JSON")
    try:
        if path.stat().st_size > limit:
            raise ConfigError(f"{path}: expected at most {limit} bytes of {kind}, got more")
        text = path.read_text(encoding="utf-8-sig")  # Windows writes a mark in front
        content = yaml.safe_load(text) if is_yaml else json.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"expected {path.name} in {path.parent}, there is none; {hint}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        told = str(error).splitlines()[0]
        raise ConfigError(f"{path}: expected {kind}, got something else ({told})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object of {kind}, got something else")
    return content


def read_checkpoint(path: Path, figures: Sequence[Any] = ()) -> dict[str, Any]:
    """Read tensors and plain values; a file that asks for more is refused and runs nothing.

    Args:
        path: What torch.save wrote.
        figures: Further types that it may hold.

    Raises:
        ConfigError: it is damaged, or would run code when it is read.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(figures)):
            warnings.simplefilter("ignore")  # about protocols of pickle; what fails is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: expected tensors and plain values alone, got something that would run code "
            f"when it is read ({str(error).strip().splitlines()[0]}); save the weights again "
            f"with the tool that trained them"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path}: expected a whole checkpoint of PyTorch, got one that is cut short or damaged"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a checkpoint with names, got another content")
    return content


def plain_text(value: Any, instead: str) -> str:
    """Return a text of a file without what could write over a terminal or break a file.

    As a label it fits into DICOM's LO: at most 64 characters without a backslash.
    """
    text = "".join(each for each in str(value or "") if each.isprintable())
    return text.replace("\\", "/").strip()[:_MAX_TEXT] or instead
