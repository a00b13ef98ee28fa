"""Rounds against final error: methods and first guesses on problems from easy to hard.

    pytest benchmarks/bench_rounds.py --benchmark-only --benchmark-full -s
    pytest benchmarks/bench_rounds.py --benchmark-only -s -k "checkpoint or digits-0.1-25"

The first prints the published lines; without --benchmark-full a case has 1 seed, at most 6 samples
and its first tolerances. A line per method and tolerance. rounds: of the batch, so of its slowest
sample, mean of the seeds; each: rounds of a sample, mean; evals: model rows per sample; median,
p80, rms: of the root mean squared difference of a sample from the sequential one; far: share of the
samples where it exceeds 0.1, so mostly another image; energy: distance of the law from sequential
samples of other seeds, beside that of the sequential samples themselves. Methods are to be compared
where their final errors are equal, not at equal tolerances: a method that changes points less per
round also stops further from the answer.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from round_parasolver import parasolver
from round_parataa import parataa
from round_paths import run as run_peer
from round_problems import METHODS, energy_distance, make
from round_srds import srds

FAR = 0.1

# schemes of other papers at their settings: memory 3 with order 8 for ParaTAA, 5 first steps
PEERS = {
    "ParaTAA 3, 8": parataa,
    "ParaTAA 2, N": partial(parataa, memory=2, order=1000),
    "ParaTAA 5, 8": partial(parataa, memory=5),
    "ParaSolver 5": parasolver,
    "ParaSolver 1": partial(parasolver, num_first=1),
    "SRDS": srds,
}
# the tolerance of each in its own paper's sense
PUBLISHED = {"ParaTAA 3, 8": 0.05, "ParaSolver 1": 0.1, "SRDS": 0.005}


@dataclass(frozen=True)
class Case:
    """A problem, its grid and window, and how much of it is run."""

    problem: str
    num_steps: int
    eta: float
    window_size: int
    num_seeds: int = 5
    num_samples: int = 16
    tolerances: tuple[float, ...] = (0.2, 0.1, 0.05, 0.025)
    has_peer: bool = False

    @property
    def name(self) -> str:
        """For -k."""
        solver = f"eta{self.eta:g}-w{self.window_size}"
        return f"{self.problem}-{self.num_steps}-{solver}".replace(" ", "-")

    def shortened(self) -> Case:
        """The same case in less time, whose counts are too few to be published."""
        few = min(self.num_samples, 6)
        return replace(self, num_seeds=1, num_samples=few, tolerances=self.tolerances[:2])


CASES = [
    Case("digits 0.1", 25, 0.0, 25, has_peer=True),
    Case("digits 0.1", 100, 0.0, 100, num_seeds=2, tolerances=(0.1, 0.05), has_peer=True),
    Case("digits 0.1", 100, 1.0, 100, num_seeds=2, tolerances=(0.1, 0.05)),
    Case("digits 0.1", 1000, 1.0, 100, num_seeds=1, tolerances=(0.1,)),
    Case("digits 0.3", 25, 0.0, 25, num_seeds=3, tolerances=(0.1, 0.05)),
    Case("mixture 2", 100, 0.0, 100, tolerances=(0.2, 0.1, 0.05)),
    Case("mixture 32", 100, 1.0, 100, num_seeds=2, tolerances=(0.2, 0.1, 0.05)),
    Case("mixture 1024", 25, 0.0, 25, num_seeds=1, tolerances=(0.1, 0.05)),
    Case("checkpoint", 25, 0.0, 25, num_seeds=1),
    Case("checkpoint", 50, 1.0, 50, num_seeds=1, tolerances=(0.2, 0.1, 0.025, 0.0125)),
    Case("unet", 25, 0.0, 25, num_seeds=1, num_samples=8, tolerances=(0.1,)),
    Case("dit", 25, 0.0, 25, num_seeds=1, num_samples=8, tolerances=(0.1,)),
]
HEADER = (
    f"{'method':16s} {'tol':>6s} {'rounds':>7s} {'each':>6s} {'evals':>6s} {'median':>8s} "
    f"{'p80':>8s} {'rms':>8s} {'far':>6s} {'energy':>8s}"
)


@dataclass(frozen=True)
class Line:
    """What one method cost at one tolerance, and how far it ended; see the module."""

    method: str
    tolerance: float
    rounds: float
    each: float
    evals: float
    median: float
    p80: float
    rms: float
    far: float
    energy: float

    def __str__(self) -> str:
        return (
            f"{self.method:16s} {self.tolerance:6g} {self.rounds:7.1f} {self.each:6.1f} "
            f"{self.evals:6.0f} {self.median:8.5f} {self.p80:8.5f} {self.rms:8.5f} "
            f"{self.far:6.3f} {self.energy:8.4f}"
        )


def references(case: Case) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Sequential samples of every seed, and as many of other seeds for the distance of laws."""
    problem = make(case.problem, case.num_steps, case.eta)
    seeds = range(2 * case.num_seeds)
    all_samples = [problem.sequential(case.num_samples, seed) for seed in seeds]
    return all_samples[: case.num_seeds], torch.cat(all_samples[case.num_seeds :])


def _line(
    name: str,
    tolerance: float,
    runs: list[tuple[torch.Tensor, int, float, float]],
    truth: list[torch.Tensor],
    others: torch.Tensor,
) -> Line:
    samples, rounds, each, evals = zip(*runs, strict=True)
    errors = torch.cat(
        [(x - y).flatten(1).square().mean(1).sqrt() for x, y in zip(samples, truth, strict=True)]
    ).double()
    return Line(
        name,
        tolerance,
        statistics.mean(rounds),
        statistics.mean(each),
        statistics.mean(evals),
        float(errors.median()),
        float(errors.quantile(0.8)),
        float(errors.square().mean().sqrt()),
        float((errors > FAR).double().mean()),
        energy_distance(torch.cat(samples), others),
    )


def measure(
    case: Case, name: str, tolerance: float, truth: list[torch.Tensor], others: torch.Tensor
) -> Line:
    """Run a method, a peer or "diffusers" at one tolerance with every seed of the case."""
    problem = make(case.problem, case.num_steps, case.eta)
    runs = []
    for seed in range(case.num_seeds):
        arguments = (case.window_size, tolerance, case.num_samples, seed)
        if name == "diffusers":
            from round_peers import paradigms

            samples, rounds, evaluations = paradigms(problem, case.eta, *arguments)
            each = float(rounds)
        elif name in PEERS:
            cost = run_peer(PEERS[name], problem, *arguments)
            samples, rounds = cost.samples.to(problem.dtype), int(cost.rounds.max())
            evaluations = int(cost.evaluations.sum())
            each = float(cost.rounds.double().mean())
        else:
            result = problem.parallel(METHODS[name], *arguments)
            samples, rounds = result.samples, result.stats.rounds
            evaluations = result.stats.evaluations
            each = float(result.stats.rounds_per_sample.mean())
        runs.append((samples, rounds, each, evaluations / case.num_samples))
    return _line(name, tolerance, runs, truth, others)


def table(case: Case) -> list[Line]:
    """All methods at all tolerances of a case."""
    truth, others = references(case)
    names = [*METHODS, *(["diffusers"] if case.has_peer else [])]
    runs = [(name, t) for name in names for t in case.tolerances]
    # a peer runs sample by sample, and 1000 steps would take it minutes: see `round_matrix`
    if case.num_steps <= 100:
        runs += [(name, t) for name, t in PUBLISHED.items() if name != "SRDS" or case.eta == 0]
    return [measure(case, name, t, truth, others) for name, t in runs]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_rounds(benchmark, capsys, is_full, case):
    case = case if is_full else case.shortened()
    lines = []
    # one run: the counts do not vary, and the time is that of all methods together
    benchmark.pedantic(lambda: lines.extend(table(case)), rounds=1, iterations=1)
    truth, others = references(case)
    benchmark.extra_info["lines"] = [vars(line) for line in lines]
    with capsys.disabled():
        own = energy_distance(torch.cat(truth), others)
        print(
            f"\n{case.name}: {case.num_seeds} x {case.num_samples} samples, sequential: "
            f"{case.num_steps} rounds, energy {own:.4f}\n{HEADER}"
        )
        print(*lines, sep="\n")
