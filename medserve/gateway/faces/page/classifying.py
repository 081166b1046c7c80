"""Classifying the files of a job, and what a visitor gets to see of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from medserve.errors import (
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerFailedError,
)
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.packing import ImageFile, Packing, classify_each
from medserve.gateway.core.requests import TaskRequest
from medserve.gateway.faces.page.jobs import Item, Job, Status
from medserve.tasks.classification import Classification

__all__ = ["classify", "correct", "described", "explanation", "status"]

# The file itself is at fault; any other error says nothing about the file.
_OF_THE_FILE = (InvalidRequestError, PayloadTooLargeError)


async def classify(gateway: Gateway, job: Job, items: Sequence[Item], order: TaskRequest) -> None:
    """Ask the model for all files that it has not answered yet; each gets an outcome.

    Raises:
        MedserveError: the model cannot be asked at all; the files stay without an outcome.
    """
    waiting = [item for item in items if status(item) in (Status.WAITING, Status.FAILED)]
    if not waiting:
        return

    async with aclosing(classify_each(gateway, order, _images(job, waiting))) as outcomes:
        async for outcome in outcomes:
            item = waiting[outcome.index]
            try:
                item.outcome = outcome.classification()
            except MedserveError as error:
                item.outcome = error
            item.provenance = outcome.provenance


async def explanation(gateway: Gateway, job: Job, item: Item, order: TaskRequest) -> dict[str, Any]:
    """What the class of a file rests on; asked for once and kept with the job's files.

    Raises:
        MedserveError: the file has no class, or the model cannot be asked.
    """
    if not isinstance(item.outcome, Classification):
        raise InvalidRequestError("expected a file that has a class, got one without")
    kept = job.folder / f"{item.number:06d}-explanation.json"
    if kept.exists():
        content: dict[str, Any] = json.loads(await asyncio.to_thread(kept.read_bytes))
        return content
    asked = order.with_params({"explain": True})
    async with aclosing(classify_each(gateway, asked, _images(job, [item]))) as outcomes:
        found = (await anext(outcomes)).classification().explanation
    if found is None:
        raise ServerFailedError("the model answers without an explanation")
    content = found.to_json()
    await asyncio.to_thread(kept.write_text, json.dumps(content))
    return content


async def _images(job: Job, items: Sequence[Item]) -> AsyncGenerator[ImageFile, None]:
    """The files, read by the callful, so that none waits for the disk while a call could leave."""
    for callful in _callfuls(items):
        contents = await asyncio.to_thread(_read, [job.path(item) for item in callful])
        for item, content in zip(callful, contents, strict=True):
            yield ImageFile(str(item.number), content)


def _callfuls(items: Sequence[Item]) -> Iterator[list[Item]]:
    packing = Packing()
    callful: list[Item] = []
    for item in items:
        size = sum(each.size_bytes for each in callful) + item.size_bytes
        if callful and (len(callful) == packing.items_per_call or size > packing.bytes_per_call):
            yield callful
            callful = []
        callful.append(item)
    yield callful


def _read(paths: Sequence[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def correct(job: Job, numbers: Mapping[int, str | None]) -> list[Item]:
    """Set the class that a person chose, or take it back (None); all of them or none."""
    if unknown := {label for label in numbers.values() if label} - set(job.labels):
        raise InvalidRequestError(
            f"expected classes of this model, got {len(unknown)} that are none"
        )
    items = [job.item(number) for number in numbers]
    for item in items:
        item.correction = numbers[item.number] or None
    return items


def status(item: Item) -> Status:
    """What became of a file, whatever a person made of it."""
    outcome = item.outcome
    if outcome is None:
        return Status.WAITING
    if isinstance(outcome, _OF_THE_FILE):
        return Status.ERROR
    if isinstance(outcome, MedserveError):
        return Status.FAILED
    if outcome.unlike_training:
        return Status.UNLIKE
    return Status.REVIEW if outcome.review else Status.OK


def described(item: Item) -> dict[str, Any]:
    """One file as the page shows it."""
    outcome = item.outcome
    content: dict[str, Any] = {
        "number": item.number,
        "name": item.name,
        "size": item.size_bytes,
        "status": status(item),
        "correction": item.correction,
    }
    if isinstance(outcome, Classification):
        content |= {
            "label": outcome.label,
            "label_id": outcome.label_id,
            "probability": outcome.probability,
            "probabilities": list(outcome.probabilities),
            "novelty": outcome.novelty,
        }
    elif isinstance(outcome, MedserveError):
        content["error"] = {"code": outcome.code, "message": outcome.message}
    return content
