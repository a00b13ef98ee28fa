"""A diffusers model and scheduler as a `ParallelSampler`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ctd_engine import _checks
from ctd_engine._request import Request
from ctd_engine.integrations.diffusers._calls import SHARED, bare, first_channels
from ctd_engine.integrations.diffusers.tables import solver_table
from ctd_engine.result import SampleResult
from ctd_engine.sampler import ParallelSampler

__all__ = ["DiffusersSampler", "sampler"]

# models, by class name, and the number by which their pipelines divide timesteps
MODELS = {
    "UNet2DModel": 1.0,
    "UNet2DConditionModel": 1.0,
    "DiTTransformer2DModel": 1.0,
    "SD3Transformer2DModel": 1.0,
    "FluxTransformer2DModel": 1000.0,
}


class DiffusersSampler(ParallelSampler):
    """A `ParallelSampler` with the conditioning of `sampler`; everything else is the same.

    `sample()` draws one sample per row of the conditioning; conditioning of one row serves any
    number of samples. `cond` and `guidance_scale` of a call take the place of the sampler's own.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        bound: Mapping[str, Any],
        scale: float | None,
        **named: Any,
    ) -> None:
        super().__init__(model, **named)
        self._bound = dict(bound)
        self._scale = scale

    def sample(self, num_samples: int | None = None, **named: Any) -> SampleResult:
        """As `ParallelSampler.sample`; None draws one sample per row of the conditioning."""
        if num_samples is None:
            num_samples = max((len(value) for value in _tensors(self._bound)), default=1)
        return super().sample(num_samples, **named)

    def _request(
        self,
        num_samples: int,
        seed: int | None,
        seeds: Sequence[int] | None,
        x_init: Tensor | None,
        noise: Tensor | Callable[..., Tensor] | None,
        cond: Mapping[str, Any] | None,
        guidance_scale: float | None,
    ) -> Request:
        if cond is None:
            cond = {name: _spread(value, num_samples) for name, value in self._bound.items()}
        scale = self._scale if guidance_scale is None else guidance_scale
        return super()._request(num_samples, seed, seeds, x_init, noise, cond, scale)


def _tensors(cond: Mapping[str, Any]) -> list[Tensor]:
    return [value for value in cond.values() if isinstance(value, Tensor)]


def _spread(value: Any, num_samples: int) -> Any:
    if isinstance(value, Tensor) and len(value) == 1:
        return value.expand(num_samples, *value.shape[1:])
    return value


class _Called(torch.nn.Module):
    """A diffusers model as `model(x, t, **cond)`, nested conditioning under dotted names."""

    def __init__(
        self,
        model: torch.nn.Module,
        divisor: float,
        shape: tuple[int, ...],
        keeps_variance: bool,
        shared: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self._divisor = divisor
        self._shape = shape
        self._keeps_variance = keeps_variance
        self._shared = dict(shared)
        self._input = _input_name(model)
        config: Any = bare(model).config
        self._looks_up = config.get("time_embedding_type") == "learned"

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if self._looks_up:
            # a table of timesteps
            t = t.round().long()
        named = {self._input: x, "timestep": t if self._divisor == 1.0 else t / self._divisor}
        out: Tensor = self.model(**named, **_nested(cond), **self._shared, return_dict=False)[0]
        return out if self._keeps_variance else first_channels(out, self._shape)


def sampler(
    model: torch.nn.Module,
    scheduler: Any,
    num_inference_steps: int | None = None,
    *,
    shape: Sequence[int] | None = None,
    encoder_hidden_states: Tensor | None = None,
    class_labels: Tensor | None = None,
    added_cond_kwargs: Mapping[str, Tensor] | None = None,
    pooled_projections: Tensor | None = None,
    guidance: Tensor | None = None,
    img_ids: Tensor | None = None,
    txt_ids: Tensor | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    negative: Mapping[str, Any] | None = None,
    guidance_scale: float | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
    eta: float = 0.0,
    **options: Any,
) -> DiffusersSampler:
    """A sampler of a diffusers model with a diffusers scheduler, parallel in time.

    Samples are latents where the model is one of latents: a pipeline's VAE makes images of them. A
    whole pipeline keeps its call with `parallelize`.

    Args:
        model: UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, SD3Transformer2DModel or
            FluxTransformer2DModel, in evaluation mode; it may be compiled.
        scheduler: any that has a table, see `solver_table`; it is not changed.
        num_inference_steps, timesteps, sigmas, mu, eta: as of `solver_table`.
        shape: of one sample; by default that of the model's configuration, for Flux
            (len(img_ids), in_channels).
        encoder_hidden_states, class_labels, added_cond_kwargs, pooled_projections, guidance: the
            model's own arguments, [B, ...] or one row for all samples. `guidance` is the number
            that guidance-distilled models are told.
        img_ids, txt_ids: Flux's positions, shared by all samples.
        model_kwargs: further arguments of the model's forward; tensors have one row per sample.
        negative: for guidance, the arguments above for "no condition"; those that it leaves out are
            as above.
        guidance_scale: w of m = m_negative + w (m - m_negative); None or 1 is off.
        options: further arguments of `ParallelSampler`, such as `window_size` and `tolerance`.
            `dtype`, `model_dtype` and `device` are by default those of the model, states in at
            least float32.

    Returns:
        A `ParallelSampler` that knows its conditioning: `sampler(...).sample(seed=0).samples`.

    Raises:
        TypeError: a model of another class, or arguments that it does not take.
        ValueError: a scheduler without a table, or guidance without `negative`.
    """
    divisor = _divisor(model)
    inner = bare(model)
    if inner.training:
        raise ValueError(
            f"model must be in evaluation mode, or its dropout makes every call another one: "
            f"{type(inner).__name__}.eval()"
        )
    given = {
        "encoder_hidden_states": encoder_hidden_states,
        "class_labels": class_labels,
        "added_cond_kwargs": added_cond_kwargs,
        "pooled_projections": pooled_projections,
        "guidance": guidance,
        "img_ids": img_ids,
        "txt_ids": txt_ids,
        **(model_kwargs or {}),
    }
    named = {name: value for name, value in given.items() if value is not None}
    _require_known(inner, named, "the model")
    _require_known(inner, negative or {}, "negative")
    parameter = next(inner.parameters())
    device = torch.device(options.setdefault("device", parameter.device))
    shared = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in named.items()
        if name in SHARED
    }
    cond = {name: value for name, value in named.items() if name not in SHARED}
    bound = _flat(cond)
    if guidance_scale is not None and guidance_scale != 1.0 and negative is None:
        raise ValueError(
            "guidance_scale needs negative: the model's arguments for 'no condition', such as "
            'negative={"encoder_hidden_states": ...}'
        )
    null = None if negative is None else {**bound, **_flat(negative)}
    table = solver_table(
        scheduler, num_inference_steps, timesteps=timesteps, sigmas=sigmas, mu=mu, eta=eta
    )
    own_shape = tuple(_shape_of(inner, img_ids) if shape is None else shape)
    options.setdefault("dtype", torch.promote_types(parameter.dtype, torch.float32))
    options.setdefault("model_dtype", parameter.dtype)
    return DiffusersSampler(
        _Called(model, divisor, own_shape, table.outputs == 2, shared),
        bound,
        guidance_scale,
        shape=own_shape,
        solver=table,
        null_cond=null,
        **options,
    )


def _divisor(model: torch.nn.Module) -> float:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for kind in type(bare(model)).__mro__:
        if kind.__name__ in MODELS:
            return MODELS[kind.__name__]
    raise TypeError(
        f"model must be one of {', '.join(MODELS)}, got {type(bare(model)).__name__}; for another "
        "one give ParallelSampler a function model(x, t, **cond) and solver_table(scheduler, ...)"
    )


def _input_name(model: torch.nn.Module) -> str:
    # after self
    return list(inspect.signature(type(bare(model)).forward).parameters)[1]


def _require_known(model: torch.nn.Module, named: Mapping[str, Any], what: str) -> None:
    known = inspect.signature(type(model).forward).parameters
    unknown = sorted(name for name in named if name not in known)
    if unknown:
        raise TypeError(f"{type(model).__name__} takes no {unknown}, got by {what}")


def _shape_of(model: torch.nn.Module, img_ids: Tensor | None) -> tuple[int, ...]:
    config: Any = model.config
    if img_ids is not None:
        return (len(img_ids), config.in_channels)
    size = config.get("sample_size")
    if size is None:
        raise ValueError(
            f"shape is needed: the configuration of {type(model).__name__} has no sample_size"
        )
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    return (config.in_channels, *(_checks.require_int("sample_size", s) for s in sizes))


def _flat(cond: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in cond.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = name.split(".")
        inside = nested
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = value
    return nested
