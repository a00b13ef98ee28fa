"""A diffusers scheduler -> the solver table of the same numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ctd_engine import _checks
from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers import ddpm, edm, flow, multistep, sigma_space, unipc

__all__ = ["FAMILIES", "solver_table", "table_as_set"]

# by class name, so that diffusers itself is never imported
FAMILIES: dict[str, Callable[..., SolverTable]] = {
    "DDPMScheduler": ddpm.ddpm,
    "DDPMParallelScheduler": ddpm.ddpm,
    "DDIMScheduler": ddpm.ddim,
    "DDIMParallelScheduler": ddpm.ddim,
    "EulerDiscreteScheduler": sigma_space.euler,
    "EulerAncestralDiscreteScheduler": sigma_space.euler_ancestral,
    "HeunDiscreteScheduler": sigma_space.heun,
    "DPMSolverMultistepScheduler": multistep.dpmsolver,
    "UniPCMultistepScheduler": unipc.unipc,
    "EDMEulerScheduler": edm.edm_euler,
    "EDMDPMSolverMultistepScheduler": edm.edm_dpmsolver,
    "FlowMatchEulerDiscreteScheduler": flow.flow_euler,
}


def solver_table(
    scheduler: Any,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
) -> SolverTable:
    """The table of what a diffusers scheduler does in a loop of `step`, node by node.

    Timesteps and noise levels are those of a new scheduler of the same class and configuration,
    which keep the float32 rounding of its tables; each coefficient is computed from them in the
    scheduler's own precision and order. States are the scheduler's: `x_init` of a sampler is the
    pipeline's latents, already multiplied with `init_noise_sigma`.

    Args:
        scheduler: a diffusers scheduler of a class in `FAMILIES`. It is not changed, and what
            it holds besides its configuration is not read, but for a shift that was set.
        num_inference_steps: as of the scheduler's `set_timesteps`.
        timesteps, sigmas, mu: as of `set_timesteps`, for schedulers that take them.
        eta: of DDIM, in [0, 1]; 0 adds no noise.
        use_clipped_model_output: of DDIM: go on with the noise that fits the clipped x0.

    Raises:
        TypeError: not a scheduler.
        ValueError: a scheduler, an option or a value that has no table; the message says which and
            what to use instead.
    """
    family = _family(scheduler)
    given = {
        "num_inference_steps": num_inference_steps,
        "timesteps": None if timesteps is None else list(timesteps),
        "sigmas": None if sigmas is None else list(sigmas),
        "mu": mu,
    }
    own = _with_timesteps(scheduler, {k: v for k, v in given.items() if v is not None})
    step_options = {"eta": float(eta), "use_clipped_model_output": bool(use_clipped_model_output)}
    known = inspect.signature(family).parameters
    for name, value in step_options.items():
        if value and name not in known:
            raise ValueError(
                f"{type(scheduler).__name__} has no {name}, got {value!r}; it belongs to "
                "DDIMScheduler"
            )
    return family(own, **{k: v for k, v in step_options.items() if k in known})


def table_as_set(scheduler: Any, **step_options: Any) -> SolverTable:
    """As `solver_table`, of the timesteps that the scheduler holds and the options of its step."""
    family = _family(scheduler)
    known = inspect.signature(family).parameters
    for name, value in step_options.items():
        if name not in known:
            raise ValueError(f"{type(scheduler).__name__} has no {name}, got {value!r}")
    return family(scheduler, **step_options)


def _family(scheduler: Any) -> Callable[..., SolverTable]:
    kind = type(scheduler)
    if not all(hasattr(kind, name) for name in ("from_config", "set_timesteps", "step")):
        raise TypeError(f"scheduler must be a diffusers scheduler, got {kind.__name__}")
    for base in kind.__mro__:
        if base.__name__ in FAMILIES and kind.step is base.step:  # type: ignore[attr-defined]
            return FAMILIES[base.__name__]
    names = ", ".join(sorted(FAMILIES))
    raise ValueError(
        f"{kind.__name__} has no table: its step is none of those of {names}; make one of these "
        "with from_config(scheduler.config), or write a SolverTable"
    )


def _with_timesteps(scheduler: Any, given: dict[str, Any]) -> Any:
    """A new scheduler of the same configuration, told its timesteps."""
    kind = type(scheduler)
    if not given.keys() & {"num_inference_steps", "timesteps", "sigmas"}:
        raise ValueError("give num_inference_steps, timesteps or sigmas")
    if "num_inference_steps" in given:
        _checks.require_int("num_inference_steps", given["num_inference_steps"], minimum=1)
    takes = inspect.signature(kind.set_timesteps).parameters
    for name in given:
        if name not in takes:
            has = [each for each in takes if each not in ("self", "device")]
            raise ValueError(f"{kind.__name__} takes no {name}; its set_timesteps takes {has}")
    own = kind.from_config(scheduler.config)
    if "sigmas" in given and "sigma_schedule" in own.config:
        raise ValueError(
            f"sigmas of {kind.__name__} are read as places on its own schedule, not as noise "
            "levels; set sigma_min, sigma_max, rho or sigma_schedule, or use EulerDiscreteScheduler"
        )
    if "shift" in own.config and scheduler.shift != own.shift:
        # the one setting that lives outside the configuration
        own.set_shift(scheduler.shift)
    own.set_timesteps(**given)
    times = own.timesteps
    if "sigmas" in given:
        end = 1.0 if own.config.get("invert_sigmas", False) else 0.0
        if bool((own.sigmas[: len(times)] == end).any()):
            raise ValueError(
                "sigmas must leave noise wherever a step begins: all but the last of "
                f"EulerDiscreteScheduler's, and all of other schedulers', got {given['sigmas']}"
            )
    levels = own.sigmas[: len(times)] if hasattr(own, "sigmas") else times
    if len(times) > 2 and bool((levels == levels[0]).all()):
        raise ValueError(
            f"all {len(times)} steps of {kind.__name__} lie at timestep {float(times[0]):g}: "
            'timestep_spacing "leading" has no room for so many; use "trailing"'
        )
    return own
