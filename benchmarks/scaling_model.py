"""On paper: what splitting the rows of a round over many GPUs brings. Nothing here was measured.

`python benchmarks/scaling_model.py` prints the tables of docs/scaling.md. Change the numbers below
to those of your hardware and model; t(1), t(2), t(4), ... of a model that you can run are what
`print(sampler.plan())` is made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ctd_engine.window_plan import advance

GPUS = (1, 2, 4, 8, 16, 32, 64, 128)
# doubling the GPUs pays as long as it is at least so much faster
WORTH = 1.25


@dataclass(frozen=True)
class Machine:
    """GPUs and links; bytes and floating-point operations per second, seconds.

    Published (NVIDIA's data sheets of H100 SXM and ConnectX-7): 989 TFLOP/s dense bf16, 3.35 TB/s,
    NVLink 900 GB/s in both directions together, InfiniBand NDR 400 Gb/s per GPU. Assumed: the
    share of the peak that a model reaches, and the four latencies.
    """

    peak_flops: float = 989e12
    reached: float = 0.4
    memory_bandwidth: float = 3.35e12
    per_node: int = 8
    nvlink_bandwidth: float = 450e9
    infiniband_bandwidth: float = 50e9
    # to start a collective, and of each hop of a ring
    start_s: float = 15e-6
    nvlink_hop_s: float = 1e-6
    infiniband_hop_s: float = 5e-6
    # the sampler's launches and its one wait for the device in a round on the host
    round_s: float = 300e-6

    def gather_s(self, gpus: int, num_bytes: float) -> float:
        """A ring all-gather that ends with so many bytes on every GPU."""
        if gpus == 1:
            return 0.0
        nodes = math.ceil(gpus / self.per_node)
        hops = nodes * self.infiniband_hop_s if nodes > 1 else 0.0
        hops += (gpus - nodes) * self.nvlink_hop_s
        # NCCL runs a ring per network card, so that a node's cards add up
        slowest = self.infiniband_bandwidth if nodes > 1 else self.nvlink_bandwidth
        cards = min(gpus, self.per_node) if nodes > 1 else 1
        return self.start_s + hops + num_bytes * (gpus - 1) / gpus / (slowest * cards)


@dataclass(frozen=True)
class Workload:
    """A model and its solver.

    Args:
        flops: of one model row.
        weight_bytes: read in every call.
        floor_s: of a call, however few rows: kernel launches without CUDA graphs (assumed). The
            sequential rival is recorded in graphs and does without.
        row_bytes: of one row's output.
        evaluations_per_row: 2 with guidance.
        num_nodes: N.
        reach: points that converge in a round of an endless window; from the digits problem of the
            README, since it depends on the data and was not measured for these models.
    """

    name: str
    flops: float
    weight_bytes: float
    floor_s: float
    row_bytes: float
    evaluations_per_row: int
    num_nodes: int
    reach: float

    def recorded_s(self, machine: Machine, rows: float) -> float:
        """t(rows) on one GPU in a CUDA graph: the weights' way through memory, or arithmetic."""
        arithmetic = rows * self.flops / (machine.peak_flops * machine.reached)
        return max(self.weight_bytes / machine.memory_bandwidth, arithmetic)

    def call_s(self, machine: Machine, rows: float) -> float:
        """The same where kernels are launched one by one."""
        return max(self.floor_s, self.recorded_s(machine, rows))


@dataclass(frozen=True)
class Point:
    """The best window on so many GPUs."""

    gpus: int
    window: int
    rounds: float
    round_s: float
    gather_s: float
    num_bytes: float
    speedup: float


def flux_flops(image_tokens: int = 4096, text_tokens: int = 512, width: int = 3072) -> float:
    """Multiply-adds, twice, of FLUX.1's blocks: 19 with a stream each for image and text, 38 joint.

    12 width^2 per token and block for attention's projections and the MLP, 2 tokens^2 width for the
    attention itself; modulation and embeddings are left out.
    """
    tokens = image_tokens + text_tokens
    linear = (19 + 38) * 12 * width**2 * tokens
    attention = (19 + 38) * 2 * tokens**2 * width
    return 2.0 * (linear + attention)


WORKLOADS = (
    # 860 M parameters, 339 G multiply-adds at 4x64x64 (arXiv 2305.15798, table 1)
    Workload(
        "U-Net of SD 1, DDPM-1000", 2 * 339e9, 2 * 860e6, 8e-3, 2 * 4 * 64 * 64, 2, 1000, 66.0
    ),
    # 675 M parameters, 118.6 G multiply-adds at 256x256 (arXiv 2212.09748, table 1), and it learns
    # its variance
    Workload("DiT-XL/2, DDPM-250", 2 * 118.6e9, 2 * 675e6, 4e-3, 2 * 8 * 32 * 32, 2, 250, 28.0),
    # 12 B parameters at 1024x1024; guidance is distilled. An ODE moves less far than DDPM: 50 steps
    # in 10.4 rounds of the full window
    Workload("12B flow transformer, Euler-50", flux_flops(), 24e9, 8e-3, 2 * 64 * 4096, 1, 50, 5.3),
)


def best(machine: Machine, workload: Workload, gpus: int) -> Point:
    """The fastest window for one sample, against the sequential sampler on one GPU."""
    cost, nodes = workload.evaluations_per_row, workload.num_nodes
    sequential = nodes * workload.recorded_s(machine, cost)
    points = []
    if gpus == 1:
        points.append(Point(1, 1, nodes, sequential / nodes, 0.0, 0.0, 1.0))
    for window in range(1, nodes + 1):
        rounds = 1 + (nodes - 1) / advance(window, workload.reach)
        each = math.ceil(window * cost / gpus)
        num_bytes = each * gpus * workload.row_bytes
        gather = machine.gather_s(gpus, num_bytes)
        round_s = workload.call_s(machine, each) + gather + machine.round_s
        speedup = sequential / (rounds * round_s)
        points.append(Point(gpus, window, rounds, round_s, gather, num_bytes, speedup))
    return max(points, key=lambda point: point.speedup)


def pays_up_to(points: Sequence[Point]) -> int:
    """The largest number of GPUs that is worth its last doubling."""
    gpus = points[0].gpus
    for before, after in pairwise(points):
        if after.speedup < WORTH * before.speedup:
            break
        gpus = after.gpus
    return gpus


def table(machine: Machine, workload: Workload) -> str:
    """The rows of docs/scaling.md for one workload."""
    points = [best(machine, workload, gpus) for gpus in GPUS]
    lines = [
        f"{workload.name}: t(1 row) {1e3 * workload.recorded_s(machine, 1):.1f} ms, one sample, "
        f"pays up to {pays_up_to(points)} GPUs",
        "",
        "| GPUs | window | rounds | round ms | of it gather ms | gathered MB | times sequential |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.gpus} | {p.window} | {p.rounds:.0f} | {1e3 * p.round_s:.2f} | "
        f"{1e3 * p.gather_s:.3f} | {p.num_bytes / 1e6:.2f} | {p.speedup:.1f} |"
        for p in points
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    print("\n\n".join(table(Machine(), workload) for workload in WORKLOADS))


if __name__ == "__main__":
    main()
