"""k-diffusion's sampling functions, parallel in time. Public as `integrations.k_diffusion`'s."""

from __future__ import annotations

import inspect
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ctd_engine._rows import Model, check_batch
from ctd_engine._table import SolverTable
from ctd_engine.integrations._k_solvers import SOLVERS, own_options
from ctd_engine.integrations._nodes import START, SigmaNodes, require_levels
from ctd_engine.noise import CounterNoise, seeds_from
from ctd_engine.result import RoundProgress
from ctd_engine.sampler import ParallelSampler

__all__ = ["sample_parallel", "sampler", "table"]

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
Sigmas = Tensor | Sequence[float]

# what a table says, and what sigmas and x do
TAKEN = {"model", "shape", "schedule", "solver", "num_steps", "prediction", "time", "clip_x0"}
SAMPLER_OPTIONS = inspect.signature(ParallelSampler).parameters.keys() - TAKEN - {"solver_options"}


def _nodes(sigmas: Sigmas, solver: str, options: Mapping[str, Any]) -> SigmaNodes:
    own = own_options(solver)
    unknown = sorted(options.keys() - own)
    if unknown:
        raise ValueError(
            f'solver "{solver}" does not take {unknown}; it takes {sorted(own)}, and '
            f"ParallelSampler {sorted(SAMPLER_OPTIONS)}"
        )
    return SOLVERS[solver](_levels(sigmas), **options)


def _table(nodes: SigmaNodes, sigmas: Sigmas, clip_x0: float | None) -> SolverTable:
    # sigma as k-diffusion's loops give it: in the dtype of x
    return nodes.table(_levels(sigmas)[-1], clip_x0, time_as_input=True)


def _levels(sigmas: Sigmas) -> list[float]:
    values = torch.as_tensor(sigmas, dtype=torch.float64)
    if values.dim() != 1:
        raise ValueError(f"sigmas must have shape [N + 1], got {tuple(values.shape)}")
    return require_levels("sigmas", values.tolist())


def table(
    sigmas: Sigmas, *, solver: str = "euler", clip_x0: float | None = None, **options: Any
) -> SolverTable:
    """One of k-diffusion's solvers as a table, for a model that returns the denoised sample.

    The model is told sigma in the dtype of its input, as by k-diffusion's loops.

    Noise that is added before the first step (`s_churn`) is part of the start: `initial_scale`
    includes it, and an `x_init` has to have it already.

    Args:
        sigmas: noise levels, [N + 1], falling; the last one is usually 0 and need not be.
        solver: "euler", "heun" or "dpm_2" (options s_churn, s_tmin, s_tmax, s_noise);
            "euler_ancestral", "dpm_2_ancestral" or "dpmpp_2s_ancestral" (eta, s_noise); "lms"
            (order, 1 to 3); "dpmpp_2m"; "dpmpp_2m_sde" (eta, s_noise, solver_type);
            "dpmpp_3m_sde" (eta, s_noise); "dpmpp_sde" (eta, s_noise, r).
        clip_x0: clip the denoised sample to [-clip_x0, clip_x0]; None does not.
        **options: the solver's, with k-diffusion's names and defaults.

    Raises:
        TypeError, ValueError: an argument is wrong, or the solver cannot be a table.
    """
    return _table(_nodes(sigmas, solver, options), sigmas, clip_x0)


def sampler(
    model: Model,
    shape: Sequence[int],
    sigmas: Sigmas,
    *,
    solver: str = "euler",
    clip_x0: float | None = None,
    **options: Any,
) -> ParallelSampler:
    """A `ParallelSampler` for a model with k-diffusion's call, `model(x, sigma, **extra_args)`.

    Args:
        model: returns the denoised sample of x [R, *shape] at sigma [R].
        shape: shape of one sample, without the batch.
        sigmas, solver, clip_x0: as in `table`.
        **options: the solver's, see `table`, and those of `ParallelSampler`.

    Raises:
        TypeError, ValueError: an argument is wrong, or the solver cannot be a table.
    """
    others = {name: options.pop(name) for name in SAMPLER_OPTIONS & options.keys()}
    steps = table(sigmas, solver=solver, clip_x0=clip_x0, **options)
    return ParallelSampler(model, shape=shape, solver=steps, **others)


@torch.no_grad()
def sample_parallel(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    *,
    solver: str = "euler",
    noise_sampler: NoiseSampler | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    clip_x0: float | None = None,
    **options: Any,
) -> Tensor:
    """Sample in parallel with the call of k-diffusion's `sample_*` functions.

    Args:
        model: `model(x [R, *shape], sigma [R], **extra_args) -> [R, *shape]`, the denoised sample,
            sigma in the dtype of x; rows, of any samples and steps, must be independent.
        x: noise of deviation sigmas[0], [B, *shape].
        sigmas: [N + 1], as `get_sigmas_karras` gives them.
        extra_args: keyword arguments of the model; tensors have one row per sample, and none may
            be inside a list or dict.
        callback: called once per step, in order, with k-diffusion's dict: "x", "denoised"
            [B, *shape], "i", "sigma" and "sigma_hat". Step i is told in the round that makes it
            final for every sample; states and predictions of all steps are kept for that.
            "denoised" is the model's answer to the state before its last correction, which moved it
            by the tolerance at most.
        disable: no progress bar; None shows one on a terminal.
        solver: as in `table`.
        noise_sampler: `noise_sampler(sigma, sigma_next) -> [B, *shape]`, standard normal, which is
            asked for all steps beforehand, in a sequential loop's order; solvers with churn ask
            with (sigma, sigma_hat). None draws from counters, by `seed`.
        seed, seeds: as in `ParallelSampler.sample`; torch's global generator without them.
        clip_x0: as in `table`.
        **options: the solver's, see `table`, and those of `ParallelSampler`: tolerance,
            window_size and so on. `dtype` is that of x, and float32 for half precision, in which
            then only the model works.

    Returns:
        The denoised x, [B, *shape], in the dtype of x; NaN for a sample that diverged.

    Raises:
        TypeError, ValueError: an argument is wrong, or the solver cannot be a table.
    """
    check_batch(x)
    for name, value in (extra_args or {}).items():
        if not isinstance(value, Tensor) and _holds_tensor(value):
            raise ValueError(
                f"extra_args[{name!r}] holds tensors inside a {type(value).__name__}, whose rows "
                "cannot follow their samples; give every tensor a name of its own, and put them "
                "together in a function around the model"
            )
    others = {name: options.pop(name) for name in SAMPLER_OPTIONS & options.keys()}
    if noise_sampler is not None and solver == "dpmpp_sde":
        # the callable knows itself how its noises overlap
        options.setdefault("overlapping", False)
    nodes = _nodes(sigmas, solver, options)
    is_state = x.dtype in (torch.float32, torch.float64)
    others.setdefault("dtype", x.dtype if is_state else torch.float32)
    others.setdefault("model_dtype", None if is_state else x.dtype)
    others.setdefault("device", x.device)
    parallel = ParallelSampler(
        model, shape=x.shape[1:], solver=_table(nodes, sigmas, clip_x0), **others
    )
    if seed is None and seeds is None and (noise_sampler is not None or not nodes.draws):
        # none is needed, and to draw one would move torch's global generator
        seed = 0
    seeds = seeds_from(seed, seeds, len(x))
    sigmas = torch.as_tensor(sigmas)
    start, noise = x.to(parallel.dtype), None
    if noise_sampler is not None:
        first, noise = _drawn(noise_sampler, nodes, start, sigmas)
    elif nodes.lift > 0.0:
        counter = CounterNoise(seeds, x[0].numel(), x.device)
        first = counter.initial(torch.arange(len(x), device=x.device), start.dtype).view(x.shape)
    if nodes.lift > 0.0:
        start = start + nodes.lift * first
    result = parallel.sample(
        len(x),
        seeds=seeds,
        x_init=start,
        noise=noise,
        cond=extra_args,
        progress=sys.stderr.isatty() if disable is None else not disable,
        callback=None if callback is None else _follower(callback, nodes, sigmas, x.dtype),
        keep_trajectory=callback is not None,
    )
    # a copy made here can take part in what computes gradients, one of the sampler's own cannot
    return result.samples.to(x.dtype, copy=True)


def _holds_tensor(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _drawn(
    noise_sampler: NoiseSampler, nodes: SigmaNodes, x: Tensor, sigmas: Tensor
) -> tuple[Tensor, Tensor]:
    # the start's noise, and that of the steps: [num_nodes, B, *shape]
    first, noise = torch.zeros_like(x), x.new_zeros(len(nodes.levels), *x.shape)
    for draw in nodes.draws:
        z = noise_sampler(sigmas.new_tensor(draw.sigma), sigmas.new_tensor(draw.sigma_next))
        if not isinstance(z, Tensor) or z.shape != x.shape:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                f"noise_sampler(sigma, sigma_next) must return the shape of x, {tuple(x.shape)}, "
                f"got {got}"
            )
        (first if draw.node == START else noise[draw.node]).copy_(z)
    return first, noise


def _follower(
    callback: Callable[[dict[str, Any]], object],
    nodes: SigmaNodes,
    sigmas: Tensor,
    dtype: torch.dtype,
) -> Callable[[RoundProgress], None]:
    """Tells k-diffusion's callback of every step that has become final since the last round."""
    untold = deque((step, nodes.step_of.index(step)) for step in range(len(sigmas) - 1))

    def follow(told: RoundProgress) -> None:
        points = told.points
        while points is not None and untold and untold[0][1] < points.num_final.min():
            step, node = untold.popleft()
            # the caller may compute gradients with what it is given
            with torch.inference_mode(False), torch.no_grad():
                callback(
                    {
                        "x": points.x(node).to(dtype),
                        "i": step,
                        "sigma": sigmas[step],
                        "sigma_hat": sigmas.new_tensor(nodes.levels[node]),
                        "denoised": points.x0(node).to(dtype),
                    }
                )

    return follow
