"""A diffusers pipeline that samples parallel in time, with its own call."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch

from ctd_engine.integrations.diffusers._loop import Loop
from ctd_engine.integrations.diffusers._row_model import RowModel
from ctd_engine.integrations.diffusers.tables import solver_table
from ctd_engine.result import SampleStats
from ctd_engine.sampler import ParallelSampler

__all__ = ["Parallelized", "parallelize", "restore"]

# of ParallelSampler's arguments those that a pipeline's call leaves open
OPTIONS = (
    "window_size",
    "adaptive_window",
    "far_stride",
    "tolerance",
    "method",
    "guess",
    "max_rows",
    "backend",
    "scheduler_backend",
    "cuda_graphs",
)


class Parallelized:
    """What `parallelize` returns.

    Attributes:
        pipe: the pipeline.
        stats: what the runs of its last call cost: one `SampleStats`, more where its latents,
            conditioning or guidance changed on the way.
    """

    def __init__(self, pipe: Any, options: dict[str, Any], keep_trajectory: bool) -> None:
        self.pipe = pipe
        self.stats: list[SampleStats] = []
        self._options = options
        self._keep_trajectory = keep_trajectory
        self._known: dict[str, RowModel] = {}
        self._bar = pipe.progress_bar
        # a bar that is the object's own, not its class's
        self._own_bar = vars(pipe).get("progress_bar")
        self._loop: Loop | None = None

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """The pipeline's own progress bar, and the place where its loop begins and ends."""
        if iterable is not None:
            return self._over(iterable)
        return self._around(self._bar(total=total), getattr(self.pipe, "_num_timesteps", None))

    def _over(self, iterable: Iterable[Any]) -> Generator[Any, None, None]:
        items = list(iterable)
        with self._around(self._bar(items), len(items)) as bar:
            yield from bar

    @contextmanager
    def _around(self, bar: Any, num_steps: int | None) -> Generator[Any, None, None]:
        # a loop that was left by an error may still be open
        self.close()
        self._loop = Loop(
            model=denoiser_of(self.pipe),
            scheduler=self.pipe.scheduler,
            num_steps=num_steps,
            options=self._options,
            keep_trajectory=self._keep_trajectory,
            known=self._known,
        )
        self.stats = self._loop.stats
        self._loop.open()
        try:
            with bar:
                yield bar
        finally:
            self.close()

    def close(self) -> None:
        """Leave the pipeline's model and scheduler as they were."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None
        for model in self._known.values():
            model.forget()

    def leave(self) -> None:
        """Give the pipeline its own progress bar back, and with it all else."""
        self.close()
        del self.pipe.progress_bar
        if self._own_bar is not None:
            self.pipe.progress_bar = self._own_bar


def parallelize(
    pipe: Any,
    *,
    window_size: int | str = "auto",
    tolerance: float = 0.1,
    keep_trajectory: bool = True,
    **options: Any,
) -> Parallelized:
    """Let a diffusers pipeline run its denoising loop parallel in time.

    The pipeline keeps its call: prompts, guidance, negative prompts, several images per prompt,
    generators, latents, callbacks and output are its own. Its loop runs too; the first step samples
    all of them in parallel, and every step hands out its own latents. Noise is drawn from the
    call's generators in the order of the sequential steps. At tolerance 0 the image is the
    sequential one, up to rounding.

    A callback may change latents, conditioning or guidance: the steps that are left are then
    sampled again, in parallel; where they change after every step, one by one.

    Args:
        pipe: a pipeline with a `scheduler` that has a solver table (`solver_table`) and a denoiser
            `unet` or `transformer` whose outputs it combines linearly. A scheduler or denoiser that
            takes their place later is used from then on. A pipeline that was parallelized before
            takes the new options.
        window_size, tolerance: as of `ParallelSampler`.
        keep_trajectory: hand out the true latents of every step, which takes the memory of all
            latents, [num_steps, batch, ...] in fp32. False hands out the final latents in all
            steps, which is enough without callbacks.
        options: further arguments of `ParallelSampler`: `max_rows`, counted in latents, not in rows
            of the model, `adaptive_window`, `far_stride`, `method`, `guess`, `backend`,
            `scheduler_backend` and `cuda_graphs`.

    Returns:
        What tells the cost of the last call: `stats`.

    Raises:
        TypeError: no pipeline, or unknown options.
        ValueError: a scheduler without a table, or an option out of range.
    """
    for name in ("progress_bar", "scheduler", "__call__"):
        if not hasattr(pipe, name):
            raise TypeError(
                f"pipe must be a diffusers pipeline, got {type(pipe).__name__} without {name}"
            )
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        raise TypeError(f"parallelize takes no {unknown}; it takes {sorted(OPTIONS)}")
    options = {"window_size": window_size, "tolerance": tolerance, **options}
    parameter = next(denoiser_of(pipe).parameters())
    # offloaded weights are on the CPU or nowhere until they are used
    device = getattr(pipe, "_execution_device", parameter.device)
    # both raise what would be wrong in a call
    table = solver_table(pipe.scheduler, 2, mu=_shift(pipe.scheduler))
    ParallelSampler(torch.nn.Identity(), shape=(1,), solver=table, device=device, **options)
    restore(pipe)
    made = Parallelized(pipe, options, bool(keep_trajectory))
    pipe.progress_bar = made.progress_bar
    return made


def restore(pipe: Any) -> None:
    """Undo `parallelize`; nothing happens to a pipeline that is not parallelized."""
    bar = vars(pipe).get("progress_bar")
    made = getattr(bar, "__self__", None)
    if isinstance(made, Parallelized):
        made.leave()


def denoiser_of(pipe: Any) -> torch.nn.Module:
    """The pipeline's denoiser.

    Raises:
        TypeError: it has none.
        ValueError: a cache of its outputs is on.
    """
    for name in ("unet", "transformer"):
        model = getattr(pipe, name, None)
        if isinstance(model, torch.nn.Module):
            if getattr(model, "is_cache_enabled", False):
                raise ValueError(
                    f"pipe.{name} reuses outputs of earlier steps, which come at once in parallel; "
                    f"call pipe.{name}.disable_cache()"
                )
            return model
    raise TypeError(
        f"pipe must have a denoiser called unet or transformer, got {type(pipe).__name__}"
    )


def _shift(scheduler: Any) -> float | None:
    # some number, as the pipeline computes it from the size of its latents
    return 1.0 if scheduler.config.get("use_dynamic_shifting", False) else None
