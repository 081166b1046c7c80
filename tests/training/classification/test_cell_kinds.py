"""What is known of a cell: its label always, its stage where the file's name tells it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.blood_cell.units import UNITS
from tests.training.classification.drawn_cells import LABELS
from training.classification.cells import KindLoss, with_kinds
from training.classification.data import LabelledImages

FLAT = [unit for units in UNITS for unit in units]


def kinds(*paths: str) -> list[str]:
    """Label or unit that each path makes known."""
    folders = [path.split("/")[0] for path in paths]
    images = LabelledImages(
        np.zeros((len(paths), 4, 4, 3), dtype=np.uint8),
        np.array([LABELS.index(folder) for folder in folders]),
        paths,
        LABELS,
    )
    names = [*LABELS, *FLAT]
    return [names[kind_id] for kind_id in with_kinds(images).label_ids]


def test_there_is_a_group_of_units_for_each_label() -> None:
    assert len(UNITS) == len(LABELS)
    assert [units[0] for units in UNITS if len(units) == 1] == [
        label for label in LABELS if label not in ("immature_granulocyte", "neutrophil")
    ]


def test_a_prefix_tells_the_stage() -> None:
    found = kinds(
        "immature_granulocyte/MMY_1.jpg",
        "immature_granulocyte/PMY_1.jpg",
        "neutrophil/BNE_2.jpg",
        "neutrophil/SNE_2.jpg",
    )
    assert found == ["metamyelocyte", "promyelocyte", "band_neutrophil", "segmented_neutrophil"]


def test_a_file_without_a_stage_tells_its_label_alone() -> None:
    paths = ("immature_granulocyte/IG_1.jpg", "neutrophil/NEUTROPHIL_3.jpg", "platelet/x.jpg")
    assert kinds(*paths) == ["immature_granulocyte", "neutrophil", "platelet"]


def test_a_prefix_of_another_label_is_not_believed() -> None:
    assert kinds("eosinophil/BNE_1.jpg") == ["eosinophil"]


def test_without_smoothing_the_loss_of_a_label_is_the_log_of_its_units_sum() -> None:
    logits = torch.zeros(1, len(FLAT))  # every unit equally probable
    label = torch.tensor([LABELS.index("immature_granulocyte")])
    loss = KindLoss(0.0)(logits, torch.zeros(1, len(LABELS)), label)
    assert float(loss) == pytest.approx(-math.log(3 / len(FLAT)))


def test_without_smoothing_the_loss_of_a_stage_is_the_log_of_that_unit() -> None:
    logits = torch.zeros(1, len(FLAT))
    kind = torch.tensor([len(LABELS) + FLAT.index("myelocyte")])
    loss = KindLoss(0.0)(logits, torch.zeros(1, len(LABELS)), kind)
    assert float(loss) == pytest.approx(-math.log(1 / len(FLAT)))


def test_smoothing_makes_certainty_dear() -> None:
    sure = torch.zeros(1, len(FLAT))
    sure[0, 0] = 50.0
    labels = torch.zeros(1, len(LABELS))
    labels[0, 0] = 50.0
    kind = torch.tensor([0])
    assert (
        float(KindLoss(0.0)(sure, labels, kind)) < 1e-3 < float(KindLoss(0.1)(sure, labels, kind))
    )


def test_the_loss_reaches_the_units_of_a_label_and_no_gradient_is_lost() -> None:
    logits = torch.zeros(1, len(FLAT), requires_grad=True)
    loss = KindLoss(0.0)(logits, torch.zeros(1, len(LABELS)), torch.tensor([6]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert (gradient[0, [FLAT.index(unit) for unit in UNITS[6]]] < 0).all()
