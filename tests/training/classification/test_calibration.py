"""The temperature that makes probabilities honest."""

from __future__ import annotations

import pytest
import torch

from training.classification.calibration import fit_temperature


def drawn_logits(count: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax at `temperature` is the distribution that the labels come from."""
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(count, 4, generator=generator)
    label_ids = torch.multinomial(honest.softmax(dim=1), 1, generator=generator)[:, 0]
    return temperature * honest, label_ids


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(temperature: float) -> None:
    logits, label_ids = drawn_logits(20_000, temperature)
    assert fit_temperature(logits, label_ids) == pytest.approx(temperature, rel=0.05)


def test_no_error_among_n_images_promises_no_more_than_n_can_show() -> None:
    label_ids = torch.arange(1000) % 4
    logits = 4.0 * torch.eye(4)[label_ids]
    probabilities = (logits / fit_temperature(logits, label_ids)).softmax(dim=1)
    assert float(1.0 - probabilities.amax(dim=1).mean()) == pytest.approx(1 / 1002, rel=0.02)
