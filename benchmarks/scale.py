"""What a large batch costs on 1, 10 and 100 nodes: a simulation from measured figures of a study.

    python -m benchmarks.scale            prints the tables of docs/run/batch-scale.md
    python -m benchmarks.scale --nodes 4 --node-cores 64 --store-gb-per-s 5

A study passes stations in a row: the store gives its bytes, the network carries them, the gateway
of its node hands it on, a core computes, and the store takes answer and receipt. A station has
servers, each with one study at a time; a node has a fixed number of studies under way, so that
a slow station holds back all others. Times of computing vary from study to study; the chance is
seeded. What is simulated is a sample; the whole batch takes as many times longer as it is larger,
plus the listing. Nothing here replaces a trial with a thousand studies of one's own.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

__all__ = ["BATCHES", "Batch", "Cluster", "Outcome", "simulate", "tables"]

_SAMPLE = 20_000
_SPREAD = 0.3  # standard deviation of the logarithm of the time of computing
_LISTING_S = 16e-6  # a row of a manifest; measured by `benchmarks.batch listing`
_RECEIPT_BYTES = 1000
_LOOKS = 4  # at the store, for a study: receipt, size before and after reading, opening
_WRITES = 2  # for a receipt or a file of an answer: creating and renaming it


@dataclass(frozen=True)
class Batch:
    """The studies, and what one of them costs.

    Attributes:
        compute_s: Of one core.
        gateway_s: Of one core of the gateway, where a server answers.
        input_bytes: That are read.
        answer_bytes: Of its files.
        answer_files: How many there are.
        source: Where the figures come from.
    """

    title: str
    studies: int
    compute_s: float
    gateway_s: float
    input_bytes: float
    answer_bytes: float = 0.0
    answer_files: int = 0
    source: str = ""

    @property
    def store_steps(self) -> int:
        """How often the store is asked for one study, beside the bytes."""
        folder = 1 if self.answer_files else 0
        return _LOOKS + folder + _WRITES * (1 + self.answer_files)


@dataclass(frozen=True)
class Cluster:
    """The machines. Figures of stores and networks are assumptions: give those of your own.

    Attributes:
        node_cores: Of each node, for computing and for its gateway.
        under_way: Studies that a node has under way, for each core.
        node_gbit_per_s: Of the network of a node.
        store_gb_per_s: Of the store, for all nodes together.
        store_steps_per_s: Opening, creating and renaming, for all nodes together.
        core_hour: Price of a core for an hour, in any currency.
    """

    nodes: int = 1
    node_cores: int = 32
    under_way: int = 2
    node_gbit_per_s: float = 10.0
    store_gb_per_s: float = 2.0
    store_steps_per_s: float = 10_000.0
    core_hour: float = 0.04


BATCHES = (
    Batch(
        "1 M volumes, small network", 1_000_000, 0.38, 0.02, 5e6, 50e3, 1,
        "segmentation_3d, at most 187 ms of two cores; benchmarks/results/volumes.json",
    ),
    Batch(
        "1 M volumes, large network", 1_000_000, 120.0, 0.1, 50e6, 300e3, 1,
        "assumed: an imported nnU-Net on 512 x 512 x 300 voxels takes minutes of a core",
    ),
    Batch(
        "100 M images, large network", 100_000_000, 8.06e-3, 0.35e-3, 100e3,
        source="blood_cell, 8.06 ms of a core; benchmarks/results/blood-cell.json",
    ),
    Batch(
        "100 M images, small network", 100_000_000, 0.32e-3, 0.04e-3, 10e3,
        source="mednist, 0.32 ms of a core; benchmarks/results/serve-32.json",
    ),
)  # fmt: skip


@dataclass
class _Station:
    """Servers that take one study each, in the order in which studies come."""

    name: str
    servers: int
    seconds: float
    varies: bool = False
    busy_s: float = 0.0
    free_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free_at = [0.0] * self.servers

    def serve(self, now: float, chance: random.Random) -> float:
        """Return when a study leaves that comes now."""
        takes = self.seconds
        if self.varies:
            takes *= chance.lognormvariate(-_SPREAD * _SPREAD / 2, _SPREAD)
        end = max(now, heapq.heappop(self.free_at)) + takes
        heapq.heappush(self.free_at, end)
        self.busy_s += takes
        return end


@dataclass(frozen=True)
class Outcome:
    """What a batch takes.

    Attributes:
        hours: From the first row that is listed to the last receipt.
        per_s: Studies a second, after the listing.
        listing_hours: Of each shard, before its last study.
        core_hours: Of all nodes together, busy or not.
        price: Of these.
        bottleneck: The station that is busy most.
        use: Its share of busy time.
        next_one: The station after it, with its share.
    """

    hours: float
    per_s: float
    listing_hours: float
    core_hours: float
    price: float
    bottleneck: str
    use: float
    next_one: tuple[str, float]


def simulate(batch: Batch, cluster: Cluster, seed: int = 23) -> Outcome:
    """Let a sample of the studies pass and take the batch for as many times as much."""
    stations = _stations(batch, cluster)
    chance = random.Random(seed)
    under_way = cluster.nodes * cluster.node_cores * cluster.under_way
    sample = min(batch.studies, max(_SAMPLE, 10 * under_way))
    begun = [0.0] * under_way  # when a place for one more study becomes free
    ended = 0.0
    for _ in range(sample):
        now = heapq.heappop(begun)
        for station in stations:
            now = station.serve(now, chance)
        heapq.heappush(begun, now)
        ended = max(ended, now)
    per_s = sample / ended
    listing = batch.studies * _LISTING_S / 3600
    hours = max(batch.studies / per_s / 3600, listing)
    core_hours = hours * cluster.nodes * cluster.node_cores
    uses = sorted(
        ((each.busy_s / (ended * each.servers), each.name) for each in stations), reverse=True
    )
    return Outcome(
        hours=hours,
        per_s=per_s,
        listing_hours=listing,
        core_hours=core_hours,
        price=core_hours * cluster.core_hour,
        bottleneck="listing" if hours == listing else uses[0][1],
        use=uses[0][0],
        next_one=(uses[1][1], uses[1][0]),
    )


def _stations(batch: Batch, cluster: Cluster) -> Sequence[_Station]:
    """Return the stations of a study; the store's steps before and after are one queue each."""
    reads = _LOOKS / cluster.store_steps_per_s
    writes = (batch.store_steps - _LOOKS) / cluster.store_steps_per_s
    wire = (batch.input_bytes + batch.answer_bytes + _RECEIPT_BYTES) * 8
    sent = (batch.input_bytes + batch.answer_bytes + _RECEIPT_BYTES) / 1e9
    # Computing and the gateway share the cores of a node.
    return (
        _Station("store, steps", 1, reads + writes),
        _Station("store, bytes", 1, sent / cluster.store_gb_per_s),
        _Station("network", cluster.nodes, wire / (cluster.node_gbit_per_s * 1e9)),
        _Station(
            "engine and gateway",
            cluster.nodes * cluster.node_cores,
            batch.compute_s + batch.gateway_s,
            varies=True,
        ),
    )


def tables(clusters: Sequence[Cluster], batches: Sequence[Batch] = BATCHES) -> Iterator[str]:
    """Give the lines of one table in Markdown for each batch."""
    for batch in batches:
        yield f"**{batch.title}** ({batch.source})"
        yield ""
        yield "| nodes | hours | studies/s | core-hours | price | busiest | then |"
        yield "|---:|---:|---:|---:|---:|---|---|"
        for cluster in clusters:
            found = simulate(batch, cluster)
            name, use = found.next_one
            yield (
                f"| {cluster.nodes} | {_short(found.hours)} | {_short(found.per_s)} | "
                f"{_short(found.core_hours)} | {_short(found.price)} | "
                f"{found.bottleneck} {found.use:.0%} | {name} {use:.0%} |"
            )
        yield ""


def _short(number: float) -> str:
    """Write two digits that count, which is more than the assumptions give."""
    digits = 1 - math.floor(math.log10(number))
    rounded = round(number, digits)
    return f"{rounded:,.{max(digits, 0)}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, for 1, 10 and 100 nodes or for one cluster."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 10, 100])
    own = Cluster()
    for name in ("node_cores", "under_way"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(own, name))
    for name in ("node_gbit_per_s", "store_gb_per_s", "store_steps_per_s", "core_hour"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(own, name))
    given = vars(parser.parse_args(arguments))
    nodes = given.pop("nodes")
    cluster = Cluster(**given)
    print("\n".join(tables([replace(cluster, nodes=each) for each in nodes])))


if __name__ == "__main__":
    main()
