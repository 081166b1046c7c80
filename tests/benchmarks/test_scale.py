from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scale import BATCHES, Batch, Cluster, simulate, tables

PAGE = Path(__file__).resolve().parents[2] / "docs/run/batch-scale.md"
FREE = Cluster(store_gb_per_s=1e9, store_steps_per_s=1e9, node_gbit_per_s=1e9)
COMPUTED = Batch("volumes", 100_000, 10.0, 0.0, 1e6)


@pytest.mark.cpu
def test_the_page_shows_what_the_simulation_gives() -> None:
    clusters = [Cluster(nodes=nodes) for nodes in (1, 10, 100)]
    assert "\n".join(tables(clusters)).rstrip() in PAGE.read_text(encoding="utf-8")


@pytest.mark.cpu
def test_where_nothing_else_counts_the_rate_is_that_of_the_cores() -> None:
    for nodes in (1, 3):
        found = simulate(COMPUTED, replace(FREE, nodes=nodes))
        assert found.per_s == pytest.approx(nodes * 32 / 10.0, rel=0.03)
        assert found.bottleneck == "engine and gateway"


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("cluster", "per_s", "bottleneck"),
    [
        (replace(FREE, nodes=99, store_gb_per_s=0.1), 100, "store, bytes"),
        (replace(FREE, nodes=99, store_steps_per_s=600), 100, "store, steps"),
        (replace(FREE, nodes=1, node_gbit_per_s=0.08), 10, "network"),
    ],
    ids=["bytes", "steps", "network"],
)
def test_the_narrowest_station_bounds_the_rate(
    cluster: Cluster, per_s: float, bottleneck: str
) -> None:
    found = simulate(replace(COMPUTED, compute_s=0.001), cluster)
    assert found.bottleneck == bottleneck
    assert found.per_s == pytest.approx(per_s, rel=0.03)
    assert found.use > 0.97


@pytest.mark.cpu
def test_a_batch_never_ends_before_its_listing() -> None:
    million = replace(BATCHES[0], studies=10**9, compute_s=1e-9, gateway_s=0.0, input_bytes=1.0)
    found = simulate(million, replace(FREE, nodes=1000))
    assert found.bottleneck == "listing"
    assert found.hours == found.listing_hours
