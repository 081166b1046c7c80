"""The line of models whose inputs are rows of one size, so that many files share an engine call.

    bytes ─decode→ image ─to_network→ row ─infer→ outputs ─from_network→ result ─encode→ bytes

The five verbs are five methods with one input and one output each; a model's handler says what
they do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from handlers.base import Handler
from handlers.items import Item, errors_to, refuse_expired
from handlers.verbs import VERBS
from medserve.imaging.codecs.payload import Payload
from medserve.inference.engines import Outputs

__all__ = ["BatchedHandler"]

Source = TypeVar("Source")  # what is decoded: an image
Chosen = TypeVar("Chosen")  # what a caller may ask for
Result = TypeVar("Result")  # what is answered: a classification


class BatchedHandler(Handler[Chosen], Generic[Source, Chosen, Result]):
    """Serves one model; a subclass per task says what the five verbs do."""

    verbs: ClassVar[Mapping[str, str]] = VERBS

    @abstractmethod
    def decode(self, payload: Payload) -> Source:
        """The bytes of a file -> what it shows; MedserveError where it cannot be used."""

    @abstractmethod
    def to_network(self, source: Source) -> npt.NDArray[np.float32]:
        """What a file shows -> one row (C, ...) of the network's input, as in training."""

    def infer(self, tensors: npt.NDArray[np.float32]) -> Outputs:
        """Rows (N, C, ...) -> every output of the network, N rows each."""
        return self.engine.run(tensors)

    @abstractmethod
    def from_network(self, outputs: Outputs) -> Result:
        """The network's outputs for one file -> its result."""

    @abstractmethod
    def encode(self, result: Result, params: Chosen) -> bytes:
        """A result -> the bytes of its answer, shaped as the caller asked."""

    def answer(self, items: Sequence[Item[Chosen]]) -> None:
        """Up to `max_items` files at once; each ends with an answer or with its own error."""
        ready, tensors = [], []
        for item in items:
            with errors_to(item):
                refuse_expired(item.request)
                tensors.append(self.to_network(self.decode(item.payload)))
                ready.append(item)
        if not ready:
            return
        with errors_to(*ready):
            outputs = self.infer(np.stack(tensors))
            for row, item in enumerate(ready):
                with errors_to(item):
                    own = {name: array[row] for name, array in outputs.items()}
                    item.outcome = self.encode(self.from_network(own), item.params)

    def reproduce(self, payload: Payload) -> Outputs:
        """The outputs for one file; afterwards the batch sizes that will come most are run."""
        row = self.to_network(self.decode(payload))[np.newaxis]
        outputs = self.infer(row)
        for rows in {min(self.spec.serving.batch_size, self.max_items), self.max_items} - {1}:
            self.infer(np.repeat(row, rows, axis=0))
        return outputs
