"""Wall time of the samplers on a GPU, next to the time of the same model alone."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ctd_engine import ParallelSampler, SequentialSampler, schedules, solvers
from ctd_engine.demo import demo_checkpoint
from ctd_engine.training.unet import SmallUNet
from gpu_timing import capture

NUM_STEPS = 1000
SEED = 1
# runs that are timed, fewer where they are long
RUNS, LONG_S = 3, 8.0
# channels that give the 32x32 U-Net 36.5 million parameters
UNET_WIDTH = 328
# numbers of rows at which the model is timed alone; between them time is taken as linear
MAX_ROW_COUNTS = 6
SAMPLERS = ("sequential", "sequential, CUDA graphs")


@dataclass(frozen=True)
class Problem:
    """A model, the number of samples, and the windows that make sense for it."""

    name: str
    model: torch.nn.Module
    arguments: dict[str, Any]
    num_samples: int
    windows: tuple[int | str, ...]
    num_classes: int | None

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def cond(self, rows: int) -> dict[str, torch.Tensor]:
        """Labels for so many rows or samples."""
        if self.num_classes is None:
            return {}
        device = self.arguments["device"]
        return {"label": torch.arange(rows, device=device) % self.num_classes}


def digits(num_samples: int, device: str, num_steps: int = NUM_STEPS) -> Problem:
    """The demo's trained network of 8x8 digits."""
    trained = demo_checkpoint()
    table = solvers.ddpm(trained.schedule, num_steps, prediction=trained.prediction, clip_x0=1.0)
    return Problem(
        "demo, 8x8",
        trained.model.to(device).eval(),
        dict(shape=trained.shape, solver=table, device=device),
        num_samples,
        (32, "auto"),
        int(trained.config["num_classes"]),
    )


def unet(
    num_samples: int, device: str, num_steps: int = NUM_STEPS, width: int = UNET_WIDTH
) -> Problem:
    """A U-Net of 32x32 images with random weights: its times are real, its rounds nobody's."""
    torch.manual_seed(0)
    shape = (3, 32, 32)
    model = SmallUNet(shape=shape, width=width).to(device).eval()
    table = solvers.ddpm(schedules.linear_beta(), num_steps, clip_x0=1.0)
    arguments = dict(shape=shape, solver=table, device=device)
    # the plan of "auto" rests on how far windows move, which random weights do not tell
    return Problem("U-Net, 32x32, random weights", model, arguments, num_samples, (32, 64), None)


class CapturedModel:
    """A model at one batch size as a CUDA graph with inputs of its own."""

    def __init__(self, problem: Problem, rows: int) -> None:
        self._model = problem.model
        self._inputs = _model_inputs(problem, rows)
        for _ in range(2):
            self._run()
        graph = capture(self._run)
        if graph is None:
            raise RuntimeError(f"{problem.name} cannot be captured at {rows} rows")
        self._graph = graph

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        own_x, own_t, own_cond = self._inputs
        own_x.copy_(x)
        own_t.copy_(t)
        for name, value in cond.items():
            own_cond[name].copy_(value)
        self._graph.replay()
        # read before the next call overwrites it: a step ends before the next one begins
        return self._out

    def _run(self) -> None:
        x, t, cond = self._inputs
        self._out = self._model(x, t, **cond)

    def replay(self) -> None:
        """The model alone, on the inputs of the last call."""
        self._graph.replay()


def _model_inputs(
    problem: Problem, rows: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    device = problem.arguments["device"]
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, *problem.arguments["shape"], generator=generator, device=device)
    return x, torch.full((rows,), 500.0, device=device), problem.cond(rows)


def _seconds(call: Callable[[], Any], calls: int = 20) -> float:
    """Seconds of one of many calls in a row, the host's share in it."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls


def model_times(problem: Problem, rounds_of: Counter[int]) -> tuple[float, float | None]:
    """Mean milliseconds of the model alone at the rows of a run's rounds: eager, and captured."""
    counts = sorted(rounds_of)
    if len(counts) > MAX_ROW_COUNTS:
        at = np.linspace(0, len(counts) - 1, MAX_ROW_COUNTS).round().astype(int)
        counts = [counts[i] for i in at]
    eager: list[float] = []
    captured: list[float] = []
    for rows in counts:
        x, t, cond = _model_inputs(problem, rows)
        eager.append(_seconds(lambda x=x, t=t, cond=cond: problem.model(x, t, **cond)))
        # a model that cannot be captured has no such time
        try:
            captured.append(_seconds(CapturedModel(problem, rows).replay))
        except RuntimeError:
            captured = []
            break
    rows, weights = np.array(list(rounds_of)), np.array(list(rounds_of.values()))

    def mean_ms(seconds: list[float]) -> float:
        return 1e3 * float(np.average(np.interp(rows, counts, seconds), weights=weights))

    return mean_ms(eager), mean_ms(captured) if len(captured) == len(counts) else None


def samplers(problem: Problem) -> Iterator[tuple[str, Callable[[], Any], dict[str, Any]]]:
    """Names, makers of samplers and further arguments of `sample`."""
    arguments, count = problem.arguments, problem.num_samples
    steps = arguments["solver"].num_nodes
    shape, device = (steps, count, *arguments["shape"]), arguments["device"]
    # the counter's noise costs the host many launches, with which no peer's loop is burdened
    generator = torch.Generator().manual_seed(0)
    given = {"noise": torch.randn(shape, generator=generator).to(device)}
    plain, graphs = SAMPLERS
    yield plain, partial(SequentialSampler, problem.model, **arguments), given
    yield graphs, lambda: SequentialSampler(CapturedModel(problem, count), **arguments), given
    for window in problem.windows:
        rows = count * 32 if window == "auto" else count * window
        # all samples at once, never in waves
        maker = partial(
            ParallelSampler,
            problem.model,
            **arguments,
            window_size=window,
            max_rows=max(256, rows) if window == "auto" else rows,
        )
        yield f"parallel, window {window}", maker, {}


@torch.inference_mode()
def time_one(problem: Problem, make: Callable[[], Any], further: dict[str, Any]) -> dict:
    """One row of the table; all of the time of `sample` counts."""
    sampler, cond = make(), problem.cond(problem.num_samples)
    call = partial(sampler.sample, problem.num_samples, seed=SEED, cond=cond, **further)
    # the seed that is timed, so that every shape of its rounds has met its kernels
    call()
    seconds: list[float] = []
    while len(seconds) < RUNS and sum(seconds) < LONG_S:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        result = call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    stats = result.stats
    rounds_of = Counter(int(record.length.sum()) for record in stats.window_history)
    if not rounds_of:
        rounds_of[problem.num_samples] = stats.rounds
    model_ms, captured_ms = model_times(problem, rounds_of)
    wall = statistics.median(seconds)
    round_ms = 1e3 * wall / stats.rounds
    return {
        "rounds": stats.rounds,
        "evaluations_per_sample": stats.evaluations / problem.num_samples,
        "all_converged": result.all_converged,
        "rows_per_round": stats.evaluations / stats.rounds,
        "seconds": wall,
        "runs": len(seconds),
        "round_ms": round_ms,
        "model_ms": model_ms,
        "captured_model_ms": captured_ms,
        "overhead": round_ms / model_ms - 1,
        "overhead_captured": None if captured_ms is None else round_ms / captured_ms - 1,
    }


def problems() -> Iterator[partial[Problem]]:
    """Every problem, made when its turn comes."""
    for num_samples in (1, 16):
        yield partial(digits, num_samples, "cuda")
    yield partial(unet, 1, "cuda")
