"""What both samplers share: the checked model, solver and precision, and one checked request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from ctd_engine import _checks, solvers
from ctd_engine.denoiser import Denoiser, Model
from ctd_engine.noise import (
    CallableNoise,
    CounterNoise,
    NoiseSource,
    TensorNoise,
    seeds_from,
)
from ctd_engine.result import SampleResult, SampleStats, StopReason
from ctd_engine.schedules import Grid, Schedule
from ctd_engine.solvers import SolverTable

__all__ = ["Request", "SamplerBase", "on_device"]


# elements of initial noise that are made in one go
STARTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Request:
    """One checked call of `sample`."""

    num_samples: int
    shape: tuple[int, ...]
    num_elements: int
    seeds: list[int]
    x_init: torch.Tensor | None  # [B, D]
    initial_scale: float
    noise: NoiseSource
    denoiser: Denoiser
    dtype: torch.dtype
    device: torch.device
    # a similar trajectory [B, N + 1, D], the first guess of new points
    trajectory: torch.Tensor | None = None

    def initial(self, sample: int) -> torch.Tensor:
        """x_0 of a sample, [D]."""
        if self.x_init is not None:
            return self.x_init[sample]
        rows = torch.tensor([sample], device=self.device)
        return self.initial_scale * self.noise.initial(rows, self.dtype)[0]

    def starts(self) -> torch.Tensor:
        """x_0 of every sample, [B, D]."""
        if self.x_init is not None:
            return self.x_init.clone()
        samples = torch.arange(self.num_samples, device=self.device)
        # the reference makes the words of noise in int64: a few at a time
        rows = torch.split(samples, max(1, STARTS_AT_ONCE // self.num_elements))
        return self.initial_scale * torch.cat([self.noise.initial(r, self.dtype) for r in rows])

    def own(self) -> Request:
        """The same request with copies of the tensors that rounds read again and again."""
        noise = self.noise.own() if isinstance(self.noise, CounterNoise) else self.noise
        return replace(self, noise=noise, denoiser=self.denoiser.own())

    def load(self, other: Request) -> None:
        """Take over another request's numbers, in place; both have the same form."""
        if isinstance(self.noise, CounterNoise) and isinstance(other.noise, CounterNoise):
            self.noise.load(other.noise)
        self.denoiser.load(other.denoiser)

    def empty_samples(self) -> torch.Tensor:
        """[B, D] of NaN: what a sample is until it has ended well."""
        return torch.full(
            (self.num_samples, self.num_elements),
            torch.nan,
            dtype=self.dtype,
            device=self.device,
        )

    def result(
        self,
        samples: torch.Tensor,
        stats: SampleStats,
        reasons: list[StopReason],
        trajectory: torch.Tensor | None = None,
    ) -> SampleResult:
        """Give samples [B, D] and trajectories [B, N + 1, D] their shape back."""
        shaped = samples.view(self.num_samples, *self.shape)
        if trajectory is not None:
            trajectory = trajectory.view(*trajectory.shape[:2], *self.shape)
        return SampleResult(shaped, stats, reasons, self.seeds, trajectory)


def _on(device: torch.device, cond: Mapping[str, Any] | None) -> dict[str, Any] | None:
    # a row picks its conditioning with indices that live on the device
    if cond is None:
        return None
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in cond.items()
    }


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one, on which kernels are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class SamplerBase:
    """Arguments that every sampler takes; see `ParallelSampler` for their meaning."""

    def __init__(
        self,
        model: Model,
        *,
        shape: Sequence[int],
        schedule: Schedule | None = None,
        solver: str | SolverTable = "ddpm",
        num_steps: int | Grid = 1000,
        prediction: str = "epsilon",
        time: str | None = None,
        clip_x0: float | None = None,
        null_cond: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        solver_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable as model(x, t, **cond), got {type(model)}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype must be torch.float32 or torch.float64, got {dtype}; for a model in half "
                "precision keep the state in float32 and pass model_dtype"
            )
        if model_dtype is not None and not model_dtype.is_floating_point:
            raise ValueError(f"model_dtype must be a floating point dtype, got {model_dtype}")
        if isinstance(shape, int) or len(shape) == 0:
            raise ValueError(f"shape must be a sequence of sizes such as (1, 8, 8), got {shape!r}")
        self.model = model
        self.shape = tuple(_checks.require_int("shape", size, minimum=1) for size in shape)
        if isinstance(solver, SolverTable):
            self.table = solver
        elif schedule is None:
            raise ValueError("schedule is needed unless solver is a SolverTable")
        else:
            self.table = solvers.build(
                solver,
                schedule,
                num_steps,
                prediction=prediction,
                time=time,
                clip_x0=clip_x0,
                **dict(solver_options or {}),
            )
        self.null_cond = null_cond
        self.dtype = dtype
        self.model_dtype = model_dtype or dtype
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None and torch.cuda.is_available():
            self.device = torch.device("cuda", torch.cuda.current_device())

    def _request(
        self,
        num_samples: int,
        seed: int | None,
        seeds: Sequence[int] | None,
        x_init: torch.Tensor | None,
        noise: torch.Tensor | Callable[..., torch.Tensor] | None,
        cond: Mapping[str, Any] | None,
        guidance_scale: float | None,
    ) -> Request:
        num_samples = _checks.require_int("num_samples", num_samples, minimum=1)
        seed_list = seeds_from(seed, seeds, num_samples)
        num_elements = 1
        for size in self.shape:
            num_elements *= size
        start = None
        if x_init is not None:
            start = self._tensor(
                "x_init", x_init, (num_samples, *self.shape), "(num_samples, *shape)"
            ).reshape(num_samples, num_elements)
        source: NoiseSource = CounterNoise(seed_list, num_elements, self.device)
        if isinstance(noise, torch.Tensor):
            expected = (self.table.num_nodes, num_samples, *self.shape)
            given = self._tensor("noise", noise, expected, "(num_nodes, num_samples, *shape)")
            source = TensorNoise(given.flatten(2), source)
        elif noise is not None:
            if not callable(noise):
                raise TypeError(f"noise must be a tensor or a callable, got {type(noise)}")
            source = CallableNoise(noise, source, self.shape)
        if guidance_scale is not None:
            guidance_scale = _checks.require_float("guidance_scale", guidance_scale)
        return Request(
            num_samples=num_samples,
            shape=self.shape,
            num_elements=num_elements,
            seeds=seed_list,
            x_init=start,
            initial_scale=self.table.initial_scale,
            noise=source,
            denoiser=Denoiser(
                self.model,
                self.shape,
                num_samples,
                _on(self.device, cond),
                _on(self.device, self.null_cond),
                guidance_scale,
                self.table.outputs,
                self.table.time_as_input,
            ),
            dtype=self.dtype,
            device=self.device,
        )

    def _tensor(
        self, name: str, value: torch.Tensor, shape: tuple[int, ...], meaning: str
    ) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} = {meaning}, got {tuple(value.shape)}"
            )
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite, it holds NaN or infinity")
        return value.to(device=self.device, dtype=self.dtype)
