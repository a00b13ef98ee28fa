"""What the ranks of a group do in `test_distributed.py`, and the same in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from ctd_engine import ParallelSampler, SampleResult
from ctd_engine._ranks import Ranks
from ruled_tables import RULES, RuledModel, ruled
from ruled_tables import SHAPE as RULED_SHAPE
from small_problems import PROBLEMS, SHAPE, mixture, table_of

SIZE = 4
NUM_SAMPLES = 5
TABLE = table_of(PROBLEMS[0], 40)


class Guided:
    """The exact model moved by its conditioning; `at` is called with the number of every call."""

    def __init__(
        self, at: Callable[[int], None] = lambda call: None, dtype: torch.dtype | None = None
    ) -> None:
        self.exact = mixture(TABLE)
        self.at = at
        self.dtype = dtype
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, shift: Tensor, scale: float = 1.0) -> Tensor:
        self.rows.append(len(x))
        self.at(len(self.rows))
        out = self.exact(x, t) + 0.1 * scale * torch.sin(shift)[:, None, None]
        return out if self.dtype is None else out.to(self.dtype)


def guided(model: Guided | None = None, **options: Any) -> ParallelSampler:
    options = {"window_size": 7, "max_rows": 23, "tolerance": 0.05, **options}
    return ParallelSampler(
        model or Guided(),
        shape=SHAPE,
        solver=TABLE,
        dtype=torch.float64,
        null_cond={"shift": torch.zeros(1), "scale": 2.0},
        **options,
    )


def shifts(count: int = NUM_SAMPLES) -> dict[str, Any]:
    return {"shift": torch.arange(1.0, count + 1.0), "scale": 2.0}


# fewer rows than points
FAR: dict[str, Any] = {"window_size": 20, "far_stride": 4, "method": "secant"}
CALL: dict[str, Any] = dict(seed=3, cond=shifts(), guidance_scale=1.7)


def draw(sampler: ParallelSampler) -> SampleResult:
    return sampler.sample(NUM_SAMPLES, **CALL)


def one_row(**options: Any) -> SampleResult:
    """Never more rows than one per round."""
    sampler = ParallelSampler(
        mixture(TABLE), shape=SHAPE, solver=TABLE, dtype=torch.float64, window_size=1, **options
    )
    return sampler.sample(1, seed=2)


def learned_variance(**options: Any) -> SampleResult:
    table = ruled(**RULES["learned range"])
    sampler = ParallelSampler(
        RuledModel(2),
        shape=RULED_SHAPE,
        solver=table,
        dtype=torch.float64,
        window_size=4,
        tolerance=0.05,
        **options,
    )
    return sampler.sample(3, seed=1, cond={"shift": torch.tensor([0.0, 1.0, 2.0])})


class Perceptron(torch.nn.Module):
    """Two layers, for tensor parallelism."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.into = torch.nn.Linear(7, 16, dtype=torch.float64)
        self.out = torch.nn.Linear(16, 6, dtype=torch.float64)
        for weights in self.parameters():
            weights.data = 0.3 * torch.randn(
                weights.shape, generator=generator, dtype=torch.float64
            )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([x.flatten(1), t[:, None] / 1000.0], dim=1)
        return self.out(torch.tanh(self.into(both))).view_as(x)


def perceptron(model: torch.nn.Module, **options: Any) -> SampleResult:
    options = {"window_size": 6, **options}
    sampler = ParallelSampler(model, shape=SHAPE, solver=TABLE, dtype=torch.float64, **options)
    return sampler.sample(3, seed=4)


def failure(call: Callable[[], object]) -> tuple[str, str, bool, float]:
    """Type and text of the error, whether it has a cause, and the seconds until it came."""
    begin = time.monotonic()
    try:
        call()
    except Exception as error:
        taken = time.monotonic() - begin
        return type(error).__name__, str(error), error.__cause__ is not None, taken
    return "", "", False, time.monotonic() - begin


def fails_on(rank: int, me: int, call: int) -> Guided:
    """A model that raises on one rank in its n-th call."""

    def at(number: int) -> None:
        if me == rank and number == call:
            raise ArithmeticError("a bug of the model")

    return Guided(at)


def together(rank: int, group: dist.ProcessGroup, name: str) -> dict[str, Any]:
    """Runs that give samples, on the ranks of a group."""
    model = Guided()
    results = {
        "rows": draw(guided(model, process_group=group, split="rows")),
        "samples": draw(guided(process_group=group, split="samples", tolerance=0.0)),
        "half": draw(guided(Guided(dtype=torch.float16), process_group=group, split="rows")),
        "far points": draw(guided(process_group=group, split="rows", **FAR)),
        "one row": one_row(process_group=group, split="rows"),
        "more ranks than samples": one_row(process_group=group, split="samples"),
        "learned variance": learned_variance(process_group=group, split="rows"),
        "auto": draw(guided(process_group=group, window_size="auto")),
        "trajectory": guided(process_group=group, split="samples", tolerance=0.0).sample(
            NUM_SAMPLES, **CALL, keep_trajectory=True
        ),
        "unseeded": guided(process_group=group).sample(2, cond=shifts(2)),
    }
    only_here = dict(CALL)
    if rank > 0:
        # rank 0's numbers are used, whatever the others bring
        only_here["cond"] = {**shifts(), "shift": torch.zeros(NUM_SAMPLES)}
    results["rank 0's conditioning"] = guided(process_group=group, split="rows").sample(
        NUM_SAMPLES, **only_here
    )
    cancels = (lambda told: told.round == 3) if rank == 1 else None
    results["cancelled"] = guided(process_group=group).sample(NUM_SAMPLES, **CALL, callback=cancels)
    return {f"{name}: {kind}": result for kind, result in results.items()} | {
        f"{name}: model rows": model.rows
    }


def refusals(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """Errors on the ranks of a group, which is of use afterwards."""
    several = NUM_SAMPLES if rank == 0 else NUM_SAMPLES - 1
    uneven = guided(process_group=group, tolerance=0.05 if rank == 0 else 0.1)
    wrong = shifts(NUM_SAMPLES if rank == 0 else 2)
    apart = guided(fails_on(1, rank, 3), process_group=group, split="samples")
    calls: dict[str, Callable[[], object]] = {
        "first call": lambda: draw(guided(fails_on(1, rank, 1), process_group=group, split="rows")),
        "third call": lambda: draw(guided(fails_on(1, rank, 3), process_group=group, split="rows")),
        "apart": lambda: draw(apart),
        "num_samples": lambda: guided(process_group=group).sample(several, seed=1),
        "tolerance": lambda: draw(uneven),
        "cond": lambda: guided(process_group=group).sample(NUM_SAMPLES, seed=1, cond=wrong),
        "seed": lambda: guided(process_group=group).sample(1, seed=rank),
    }
    found: dict[str, Any] = {f"refused: {name}": failure(call) for name, call in calls.items()}
    found["refused: device"] = failure(lambda: Ranks(group, torch.device("meta")))
    found["refused: and then"] = draw(guided(process_group=group, split="rows"))
    return found


def sharded(rank: int) -> dict[str, Any]:
    """Rows along one axis of a mesh, a tensor-parallel model along the other."""
    mesh = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("rows", "model"))
    plan = {"into": ColwiseParallel(), "out": RowwiseParallel()}
    model = parallelize_module(Perceptron(), mesh["model"], plan)
    # every layer's weights are gathered when it runs
    fully = fully_shard(Perceptron(), mesh=mesh["model"])
    fully_shape = tuple(fully.into.weight.to_local().shape)
    rows = mesh["rows"]
    return {
        "fully sharded": perceptron(fully, process_group=rows, split="rows"),
        "fully sharded, local weights": fully_shape,
        "mesh": perceptron(model, process_group=rows, split="rows"),
        "mesh, samples": perceptron(model, process_group=rows, split="samples", tolerance=0.0),
        "mesh of both": failure(lambda: perceptron(model, process_group=mesh)),
        "mesh, auto": failure(lambda: perceptron(model, process_group=rows, window_size="auto")),
        "local weights": tuple(model.into.weight.to_local().shape),
    }


def work(rank: int, folder: str) -> None:
    """Everything, in one start of the processes."""
    torch.manual_seed(rank)
    pair, triple = dist.new_group([0, 1]), dist.new_group([0, 1, 2])
    found: dict[str, Any] = sharded(rank)
    if rank < 2:
        found |= together(rank, pair, "pair") | refusals(rank, pair)
    else:
        found["not a member"] = failure(lambda: guided(process_group=pair))
    if rank < 3:
        found |= together(rank, triple, "triple")
    torch.save(found, Path(folder) / f"{rank}.pt")
    if rank < 3:
        dies = guided(_killed(rank), process_group=triple, split="rows")
        torch.save(failure(lambda: draw(dies)), Path(folder) / f"{rank}.killed.pt")


def _killed(me: int) -> Guided:
    def at(number: int) -> None:
        if me == 2 and number == 4:
            os._exit(9)

    return Guided(at)
