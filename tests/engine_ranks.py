"""What the ranks of an engine do in `test_engine_ranks.py`, and the same in one process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ctd_engine import Engine, Request
from ranks_problem import TABLE, Guided
from small_problems import SHAPE

SIZE = 3
WAIT_S = 60.0


def requests() -> list[Request]:
    """Different in whatever they may differ in; more rows than the ranks divide."""
    one, three = torch.tensor([0.5]), torch.tensor([1.0, -2.0, 3.0])
    return [
        Request(solver=TABLE, seed=0, cond={"shift": one}, window_size=7),
        Request(solver=TABLE, seed=1, num_samples=3, cond={"shift": three}, tolerance=0.01),
        Request(
            solver=TABLE,
            seed=2,
            num_samples=3,
            cond={"shift": three, "scale": 0.5},
            guidance_scale=1.5,
            priority=3.0,
        ),
        Request(solver=TABLE, seed=3, cond={"shift": one}, tolerance=0.0, window_size=3),
        Request(
            solver=TABLE,
            seed=4,
            cond={"shift": one},
            x_init=torch.full((1, *SHAPE), 0.5, dtype=torch.float64),
            noise=torch.zeros(TABLE.num_nodes, 1, *SHAPE, dtype=torch.float64),
        ),
    ]


def make(model: Any = None, **options: Any) -> Engine:
    return Engine(
        model or Guided(),
        shape=SHAPE,
        dtype=torch.float64,
        null_cond={"shift": torch.zeros(1), "scale": 2.0},
        **{"max_rows": 23, **options},
    )


def error_of(function: Any) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(rank: int, folder: str) -> None:
    found: dict[str, Any] = {}
    pair = dist.new_group([0, 1])
    for name, group in (("pair", pair), ("triple", dist.group.WORLD)):
        if group is pair and rank == 2:
            continue
        model = Guided()
        with make(model, process_group=group) as engine:
            if rank == 0:
                handles = [engine.submit(request) for request in requests()]
                late = engine.submit(Request(solver=TABLE, cond={"shift": torch.tensor([1.0])}))
                late.cancel()
                found[name] = [handle.result(WAIT_S) for handle in handles]
                found[f"{name}: cancelled"] = late.result(WAIT_S).stop_reasons
                found["lambda"] = error_of(lambda: engine.submit(with_lambda()))
            else:
                found["submitted"] = error_of(lambda: engine.submit(requests()[0]))
        found[f"{name}: rows"] = model.rows
        found[f"{name}: stats"] = engine.stats
    found["limits"] = error_of(
        lambda: make(process_group=dist.group.WORLD, max_rows=23 + (rank == 1))
    )
    found["fails"] = _fails(rank)
    torch.save(found, Path(folder, f"{rank}.pt"))
    _dies(rank, folder)


def with_lambda() -> Request:
    return Request(
        solver=TABLE,
        cond={"shift": torch.tensor([1.0])},
        noise=lambda nodes, samples: torch.zeros(len(nodes), *SHAPE),
    )


def _fails(rank: int) -> list[str]:
    """The model raises on one rank for one request; the other one ends well."""

    def picky(x: torch.Tensor, t: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        if rank == 1 and (shift == 7).any():
            raise ArithmeticError("no shift of 7 on rank 1")
        return Guided()(x, t, shift)

    with make(picky, process_group=dist.group.WORLD) as engine:
        if rank > 0:
            return []
        handles = [
            engine.submit(Request(solver=TABLE, seed=0, cond={"shift": torch.tensor([shift])}))
            for shift in (7.0, 1.0)
        ]
        return [error_of(lambda handle=handle: handle.result(WAIT_S)) for handle in handles]


def _dies(rank: int, folder: str) -> None:
    """Rank 2 ends in its fourth call of the model, without a word."""

    def die(call: int) -> None:
        if rank == 2 and call == 4:
            os._exit(9)

    engine = make(Guided(die), process_group=dist.group.WORLD)
    begin = time.monotonic()
    error = ""
    if rank == 0:
        error = error_of(lambda: engine.submit(requests()[1]).result(WAIT_S))
    # ends by itself on the others, because the engine has stopped
    engine._thread.join(WAIT_S)
    closed = error_of(lambda: engine.submit(requests()[1]))
    seconds = time.monotonic() - begin
    torch.save((error, closed, engine.is_alive, seconds), Path(folder, f"{rank}.died.pt"))
