"""The demo: 64 digits from a small trained model, sequentially and in parallel, compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import torch

from ctd_engine import plots
from ctd_engine.result import SampleResult
from ctd_engine.sampler import ParallelSampler, SequentialSampler
from ctd_engine.training.checkpoint import Checkpoint, load_checkpoint

__all__ = ["DemoReport", "MethodCost", "demo_checkpoint", "run_demo"]

NUM_SAMPLES = 64
NUM_STEPS = 1000
WINDOW_SIZE = 32
TOLERANCE = 0.1
SEED = 0
# root mean squared difference per sample, for data in [-1, 1]; two digits of one class differ by
# 0.56 on average, any two by 0.76
AGREEMENT = 0.05


@dataclass(frozen=True)
class MethodCost:
    """One line of the demo's table."""

    method: str
    rounds: int
    evaluations_per_sample: float
    wall_time_s: float


@dataclass(frozen=True)
class DemoReport:
    """What the demo saw. `rms_difference` is the mean over samples, `worst` the largest."""

    costs: list[MethodCost]
    rms_difference: float
    worst_difference: float
    limit: float
    num_samples: int
    pictures: list[str]

    @property
    def agrees(self) -> bool:
        """Whether all samples agree; NaN does not."""
        return self.worst_difference <= self.limit

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "agrees": self.agrees}


def demo_checkpoint() -> Checkpoint:
    """The committed model of 8x8 digits."""
    with resources.as_file(resources.files("ctd_engine") / "assets" / "digits.safetensors") as path:
        return load_checkpoint(path)


def run_demo(
    out: Path,
    *,
    num_samples: int = NUM_SAMPLES,
    num_steps: int = NUM_STEPS,
    progress: bool = True,
) -> DemoReport:
    """Sample both ways from the same seeds, compare, and draw two pictures into `out`.

    Args:
        out: folder, made if need be, of `digits.png` and `windows.png`.
        num_samples: digits, of all ten classes in turn.
        num_steps: steps of DDPM.
        progress: show bars.
    """
    checkpoint = demo_checkpoint()
    options = dict(
        shape=checkpoint.shape,
        schedule=checkpoint.schedule,
        solver="ddpm",
        num_steps=num_steps,
        prediction=checkpoint.prediction,
        clip_x0=1.0,
    )
    cond = {"label": torch.arange(num_samples) % int(checkpoint.config["num_classes"])}
    sequential = SequentialSampler(checkpoint.model, **options).sample(  # type: ignore[arg-type]
        num_samples, seed=SEED, cond=cond, progress=progress
    )
    parallel = ParallelSampler(
        checkpoint.model,
        **options,  # type: ignore[arg-type]
        window_size=WINDOW_SIZE,
        tolerance=TOLERANCE,
        max_rows=num_samples * WINDOW_SIZE,
    ).sample(num_samples, seed=SEED, cond=cond, progress=progress)
    difference = (parallel.samples - sequential.samples).flatten(1).square().mean(1).sqrt()
    out.mkdir(parents=True, exist_ok=True)
    digits, windows = out / "digits.png", out / "windows.png"
    plots.save_side_by_side(
        digits,
        {
            f"sequential: {sequential.stats.rounds} model calls": sequential.samples,
            f"parallel: {parallel.stats.rounds} model calls": parallel.samples,
        },
    )
    plots.save_windows(windows, parallel.stats.window_history, num_steps)
    return DemoReport(
        costs=[
            _cost("sequential", sequential, num_samples),
            _cost(f"parallel, window {WINDOW_SIZE}", parallel, num_samples),
        ],
        rms_difference=float(difference.mean()),
        worst_difference=float(difference.max()),
        limit=AGREEMENT,
        num_samples=num_samples,
        pictures=[str(digits), str(windows)],
    )


def _cost(method: str, result: SampleResult, num_samples: int) -> MethodCost:
    stats = result.stats
    return MethodCost(method, stats.rounds, stats.evaluations / num_samples, stats.wall_time_s)
