"""What the head of the cell network tells apart, label by label."""

from __future__ import annotations

__all__ = ["UNITS"]

# The stages of maturation that haematologists name look different from each other, and learning
# them apart helps where two labels meet.
UNITS: tuple[tuple[str, ...], ...] = (
    ("basophil",),
    ("eosinophil",),
    ("erythroblast",),
    ("metamyelocyte", "myelocyte", "promyelocyte"),  # immature granulocytes
    ("lymphocyte",),
    ("monocyte",),
    ("band_neutrophil", "segmented_neutrophil"),
    ("platelet",),
)
