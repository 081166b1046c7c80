"""A TorchServe handler in the style of the stock ones: BaseHandler, TorchScript, one image a batch.

Decoding and preprocessing are medserve's own, so that only the way of serving differs.
"""

from __future__ import annotations

from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler

from benchmarks.work import decode_and_fit


class StockHandler(BaseHandler):  # type: ignore[misc]
    """Image file -> class and probability, by the verbs of BaseHandler."""

    def preprocess(self, data: list[dict[str, Any]]) -> torch.Tensor:
        """Files -> float32 (N, 1, 64, 64) in [0, 1]."""
        files = [bytes(row.get("data") or row.get("body") or b"") for row in data]
        return torch.stack([torch.from_numpy(decode_and_fit(file)) for file in files])

    def postprocess(self, data: tuple[torch.Tensor, torch.Tensor]) -> list[dict[str, Any]]:
        """Logits (N, K) -> one answer per file."""
        probabilities = torch.softmax(data[0], dim=1)
        top, index = probabilities.max(dim=1)
        return [
            {"label_id": label, "probability": probability}
            for label, probability in zip(index.tolist(), top.tolist(), strict=True)
        ]
