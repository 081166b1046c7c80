"""Asking a model, as any other client does: the one place of a node that knows the gateway."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medserve.client import Client, FileResult, Limits, SegmentedFile, TlsConfig
from medserve.dicom.rules import Kind, Rule, RuleTask
from medserve.errors import InvalidImageError, MedserveError
from medserve.tasks.classification import Classification
from medserve.tasks.frames import FrameResult
from medserve.tasks.regression import Regression
from medserve.tasks.result import Provenance
from medserve.tasks.volumes import VolumeFormat, VolumeOptions

__all__ = ["Answer", "Gateway"]

_FAST = 1  # zlib's level: 12-bit images in 16-bit words halve at once, more costs seconds
_WITH_SEG = {"output": "json", "format": "dicom-seg"}


@dataclass(frozen=True)
class Answer:
    """What a model found in the images of a task.

    Attributes:
        provenance: The archive that answered.
        found: One result for each unit of the task, in order: the volume, or each object.
    """

    provenance: Provenance
    found: tuple[SegmentedFile | FrameResult | Classification | Regression, ...]


class Gateway:
    """The gateway that a node asks.

    Args:
        address: Its gRPC port, `host:port`.
        token: Sent with each call.
        ca_file: Authority of its certificate; turns TLS on.
        scratch: Folder where a series is packed; the system's own for such files if left out.
        timeout_s: For each call.
        message_bytes: The largest request and answer about single objects; a series goes up in
            pieces. The gateway has limits of its own.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        scratch: Path | None = None,
        timeout_s: float = 600.0,
        message_bytes: int = 1024 * 2**20,
    ) -> None:
        self.timeout_s, self._scratch = timeout_s, scratch
        self._client = Client(
            address,
            token=token,
            tls=None if ca_file is None else TlsConfig(ca_file),
            timeout_s=timeout_s,
            limits=Limits(message_bytes=message_bytes, attempts=1),  # the node tries again itself
        )

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def ask(self, rule: Rule, files: Sequence[Path], inputs: Sequence[str] = ()) -> Answer:
        """Return what the rule's model finds in the files.

        Args:
            rule: The rule.
            files: The images of a task.
            inputs: Of a rule of several inputs: for each file the one that it is for.

        Raises:
            MedserveError: why there is no answer.
            OSError: a file is gone, or no space is left.
        """
        if rule.task is RuleTask.VOLUMES:
            return self._volume(rule, files, inputs)
        if rule.task is RuleTask.FRAMES:
            return self._frames(rule, files)
        return self._images(rule, files)

    def _volume(self, rule: Rule, files: Sequence[Path], inputs: Sequence[str]) -> Answer:
        with tempfile.TemporaryDirectory(dir=self._scratch) as name:
            folder = Path(name)
            case: Path | dict[str, Path]
            if inputs:
                case = {
                    each: _packed(
                        [file for file, of in zip(files, inputs, strict=True) if of == each],
                        folder / f"{number}.zip",
                    )
                    for number, each in enumerate(rule.inputs)
                }
            else:
                case = _packed(files, folder / "series.zip")
            is_labelmap = Kind.LABELMAP in rule.kinds
            form = VolumeFormat.DICOM_LABELMAP if is_labelmap else VolumeFormat.DICOM_SEG
            asked = VolumeOptions.from_params({**rule.options, "format": form})
            result = self._client.segment_file(
                rule.model, case, options=asked, version=rule.version
            )
        return Answer(result.provenance, (result,))

    def _frames(self, rule: Rule, files: Sequence[Path]) -> Answer:
        params = {**rule.options, **(_WITH_SEG if Kind.SEG in rule.kinds else {"output": "json"})}
        results = tuple(
            FrameResult.decode(self._client.predict(rule.model, file, params, version=rule.version))
            for file in files
        )
        return Answer(results[0].provenance, results)

    def _images(self, rule: Rule, files: Sequence[Path]) -> Answer:
        items: Sequence[FileResult[Classification] | FileResult[Regression]]
        if rule.task is RuleTask.REGRESSION:
            items = self._client.estimate(rule.model, list(files), version=rule.version)
        else:
            items = self._client.classify(rule.model, list(files), version=rule.version)
        found = []
        for item in items:
            if isinstance(item.outcome, MedserveError):
                raise item.outcome
            found.append(item.outcome)
        return Answer(items[0].provenance, tuple(found))


def _packed(files: Sequence[Path], path: Path) -> Path:
    """Write the files of a series into a zip; its members are numbered.

    Raises:
        InvalidImageError: there are none.
    """
    if not files:
        raise InvalidImageError("expected a series for each input, got none for one of them")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_FAST) as packed:
        for number, file in enumerate(files):
            packed.write(file, f"{number:05d}")
    return path
