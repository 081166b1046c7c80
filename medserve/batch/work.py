"""What happens to a study: looked up, read, asked about, and put in place with its receipt.

A study counts as done when its receipt covers it: the same input, archive and options, and an
answer whose files are there, or an error that another run would meet again. Everything else is
asked about.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec

from medserve.batch.asking import Answer, Asker, Outcome, Target
from medserve.batch.inputs import Content, read_input, stamp_of
from medserve.batch.receipts import BatchFolder, Receipt, text_of
from medserve.batch.stores import UnreadableInputError
from medserve.batch.studies import Study
from medserve.client import Limits
from medserve.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    MedserveError,
    ModelNotReadyError,
    ServerBusyError,
    ServerUnreachableError,
    UnknownModelError,
)
from medserve.tasks import OPTIONS

__all__ = ["Answering", "Became", "Reading", "Sent"]

# The server, the worker or the disk is at fault, and not the study.
_CAN_PASS = (
    *(AuthenticationError, DeadlineError, ModelNotReadyError, ServerBusyError),
    *(ServerUnreachableError, UnknownModelError, UnreadableInputError),
)
_NEVER_SENT = (ModelNotReadyError, ServerUnreachableError)  # as long as nobody is answered
_TRIES = 5  # of one study while others are answered: then it may be the study that ends workers
_FIRST_WAIT_S = 0.5  # before the second try; doubles up to `_LONGEST_WAIT_S`
_LONGEST_WAIT_S = 10.0


class Became(enum.StrEnum):
    """What a run made of a study."""

    ANSWERED = "answered"
    FAILED = "failed"
    KEPT = "kept"  # an earlier run has answered it
    KEPT_FAILED = "kept_failed"  # an earlier run has found that it cannot be answered


@dataclass(frozen=True, eq=False)
class Sent:
    """A study whose bytes are at hand, and what its receipt will say of them."""

    study: Study
    content: Content = field(repr=False)
    draft: Receipt

    @property
    def options(self) -> Mapping[str, Any]:
        """The JSON object `params` of the call."""
        return self.draft.options


@dataclass(frozen=True)
class Reading:
    """Finds out what a study needs, and reads it.

    Attributes:
        folder: Of the batch.
        target: Who will answer.
        options: What is asked for every study.
        limits: The largest input.
    """

    folder: BatchFolder
    target: Target
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    def begin(self, study: Study) -> Sent | Became:
        """Return the study with its bytes, or what became of it without asking.

        Raises:
            ConfigError: the disk is full.
        """
        asked = {**self.options, **study.options}
        draft = Receipt(
            key=study.key,
            id=text_of(study.id),
            source=text_of(study.source),
            model=self.target.model,
            version=self.target.version,
            archive_digest=self.target.archive_digest,
            options=asked,
            started_at=time.time(),
        )
        earlier = self.folder.receipt(draft.key)
        if earlier is not None:
            draft = msgspec.structs.replace(draft, attempt=earlier.attempt + 1)
        try:
            if study.problem:
                raise InvalidRequestError(study.problem)
            OPTIONS[self.target.task].from_params(asked)
            if earlier is not None and self._covers(earlier, study, draft):
                return _kept(earlier)
            has_series = self.target.task.segments  # others tell of single images
            found = read_input(study, self.limits, has_series=has_series)
        except ConfigError:
            raise
        except MedserveError as error:
            return self._refused(draft, earlier, error)
        draft = msgspec.structs.replace(
            draft,
            stamp=found.stamp,
            sha256=found.sha256,
            size_bytes=found.size_bytes,
        )
        if earlier is None or earlier.sha256 != draft.sha256 or not self._holds(earlier, draft):
            return Sent(study, found.content, draft)
        return _kept(earlier)  # touched, but not changed

    def _covers(self, earlier: Receipt, study: Study, draft: Receipt) -> bool:
        """Tell by the stamp alone whether nothing has changed."""
        if not (earlier.stamp and self._holds(earlier, draft)):
            return False
        try:
            return earlier.stamp == stamp_of(study)
        except UnreadableInputError:  # moved away after it was answered
            return earlier.status == "ok"

    def _holds(self, earlier: Receipt, draft: Receipt) -> bool:
        """Tell whether a receipt is about the same question and still has its answer."""
        same = (earlier.id, earlier.archive_digest, earlier.options) == (
            draft.id, draft.archive_digest, draft.options,
        )  # fmt: skip
        return same and not earlier.can_pass and self.folder.holds_files(earlier)

    def _refused(self, draft: Receipt, earlier: Receipt | None, error: MedserveError) -> Became:
        """Store the receipt of a study that was not sent."""
        failed = failed_receipt(draft, error)
        if earlier is not None and not failed.can_pass and _alike(earlier, failed):
            return Became.KEPT_FAILED
        self.folder.store(failed, {})
        return Became.FAILED


class Answering:
    """Asks about studies and stores what comes back.

    Args:
        folder: Of the batch.
        asker: Who answers.
        patience_s: How long the server may give no answer at all before the run ends.
    """

    def __init__(self, folder: BatchFolder, asker: Asker, patience_s: float = 120.0) -> None:
        self._folder, self._asker, self._patience_s = folder, asker, patience_s
        self._last_answer = time.monotonic()
        self._answers = 0
        self._ending = threading.Event()

    def end(self) -> None:
        """End the calls that are under way, and store nothing of them."""
        self._ending.set()
        self._asker.close()

    def finish(self, group: Sequence[Sent]) -> list[Became]:
        """Ask about studies, those of equal options in one call, and store what became of each.

        Raises:
            MedserveError: what no study is to blame for: the disk is full, nobody answers, or the
                token is refused.
        """
        became: list[Became] = []
        for _, equal in groupby(group, key=lambda sent: sent.options):
            sent = list(equal)
            started = time.monotonic()
            outcomes = self._ask(sent)
            seconds = (time.monotonic() - started) / len(sent)
            became += [
                self._store(each, outcome, seconds)
                for each, outcome in zip(sent, outcomes, strict=True)
            ]
        return became

    def _store(self, sent: Sent, outcome: Outcome, seconds: float) -> Became:
        draft = msgspec.structs.replace(sent.draft, seconds=round(seconds, 6))
        if isinstance(outcome, MedserveError):
            self._folder.store(failed_receipt(draft, outcome), {})
            return Became.FAILED
        receipt = msgspec.structs.replace(
            draft,
            **outcome.provenance.to_json(),
            answer=dict(outcome.members),
            files={name: len(content) for name, content in outcome.files.items()},
        )
        self._folder.store(receipt, outcome.files)
        return Became.ANSWERED

    def _ask(self, sent: Sequence[Sent]) -> list[Outcome]:
        """Return one outcome each; what can pass is asked again, at last one by one."""
        found: dict[int, Outcome] = {}
        places = list(range(len(sent)))
        tries, answers = 0, self._answers
        while True:
            outcomes = self._once([sent[place] for place in places])
            self._raise_if_ended(outcomes)
            found |= dict(zip(places, outcomes, strict=True))
            places = [place for place in places if isinstance(found[place], _CAN_PASS)]
            if not places:
                return [found[place] for place in sorted(found)]
            error = found[places[0]]
            assert isinstance(error, MedserveError)
            self._bear(error)
            if self._answers > answers or not isinstance(error, _NEVER_SENT):
                tries, answers = tries + 1, self._answers
            if tries >= _TRIES:
                break
            self._ending.wait(min(_FIRST_WAIT_S * 2.0**tries, _LONGEST_WAIT_S))
        if len(places) > 1:  # one of them may be what ends the workers
            found |= {place: self._ask([sent[place]])[0] for place in places}
        return [found[place] for place in sorted(found)]

    def _once(self, sent: Sequence[Sent]) -> Sequence[Outcome]:
        try:
            outcomes = self._asker.ask([each.content for each in sent], sent[0].options)
        except MedserveError as error:
            if isinstance(error, ConfigError) or self._concerns_all(error, sent):
                raise
            return [error] * len(sent)
        if any(isinstance(each, Answer) for each in outcomes):
            self._answers += 1
            self._last_answer = time.monotonic()
        return outcomes

    def _raise_if_ended(self, outcomes: Sequence[Outcome]) -> None:
        """Raise where a call was cut off: its error says nothing about its studies."""
        for each in outcomes:
            if self._ending.is_set() and isinstance(each, MedserveError):
                raise each

    def _concerns_all(self, error: MedserveError, sent: Sequence[Sent]) -> bool:
        """Tell whether no further study is worth asking about."""
        if isinstance(error, AuthenticationError):
            return True
        refused_flags = type(error) is InvalidRequestError and not sent[0].study.options
        return refused_flags and not self._answers

    def _bear(self, error: MedserveError) -> None:
        """Raise the error where the run has waited long enough, or shall end."""
        if isinstance(error, UnreadableInputError):
            return
        waited_s = time.monotonic() - self._last_answer
        if self._ending.is_set() or waited_s > self._patience_s:
            raise error


def failed_receipt(draft: Receipt, error: MedserveError) -> Receipt:
    """Return the receipt of a study that has an error in the place of an answer."""
    return msgspec.structs.replace(
        draft,
        status="error",
        code=error.code,
        message=error.message,
        can_pass=isinstance(error, _CAN_PASS),
    )


def _kept(earlier: Receipt) -> Became:
    return Became.KEPT if earlier.status == "ok" else Became.KEPT_FAILED


def _alike(earlier: Receipt, failed: Receipt) -> bool:
    own = ("id", "status", "code", "message", "options", "archive_digest")
    return all(getattr(earlier, name) == getattr(failed, name) for name in own)
