"""One call of a diffusers denoiser, recorded, and made again for other rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["ModelCall", "bare", "first_channels", "output_shape", "take_rows"]

# tensors that all rows share, whatever their first dimension happens to be
SHARED = ("txt_ids", "img_ids")
# what a ControlNet or an adapter adds may depend on the step
PER_STEP = ("controlnet", "additional_residual")


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside a `torch.compile`d one."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, torch.nn.Module) else model


def take_rows(value: Any, take: Callable[[Tensor], Tensor], count: int, name: str = "") -> Any:
    """Rows of every tensor of `count` rows in nested conditioning; all else as it is."""
    if isinstance(value, Tensor):
        is_per_row = name not in SHARED and value.dim() > 0 and value.shape[0] == count
        return take(value) if is_per_row else value
    if isinstance(value, Mapping):
        return {key: take_rows(item, take, count, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return _like(value, [take_rows(item, take, count, name) for item in value])
    return value


def is_same(a: Any, b: Any) -> bool:
    """Whether two pieces of nested conditioning are equal; the same tensors are not compared."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return bool(a == b)


def _like(sequence: Any, items: list[Any]) -> Any:
    kind = type(sequence)
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


def _copied(value: Any) -> Any:
    # containers may be changed between two calls, tensors are not
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return _like(value, [_copied(item) for item in value])
    return value


def form(value: Any) -> Any:
    """Shapes and types of nested conditioning, hashable: all that the cost of a row depends on."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple((key, form(value[key])) for key in sorted(value))
    if isinstance(value, (list, tuple)):
        return tuple(form(item) for item in value)
    return type(value)


@cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


@dataclass(frozen=True, eq=False)
class ModelCall:
    """What a pipeline told its model in one call.

    `x` [M, ...] is the model's input, `time` [M] or [] its time input, `cond` all other arguments
    by name; `names` are the model's own names of the first two.
    """

    x: Tensor
    time: Tensor
    cond: dict[str, Any]
    names: tuple[str, str]

    @classmethod
    def record(
        cls, model: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> ModelCall:
        """The call `model(*arguments, **named)`.

        Raises:
            ValueError: an argument that changes from step to step.
        """
        parameters = _signature(type(bare(model)).forward)
        cond = dict(parameters.bind(None, *arguments, **named).arguments)
        for kept in [p.name for p in parameters.parameters.values() if p.kind is p.VAR_KEYWORD]:
            cond.update(cond.pop(kept, {}))
        # the bound self
        cond.pop(next(iter(parameters.parameters)))
        cond.pop("return_dict", None)
        input_name = next(iter(cond))
        x, time = cond.pop(input_name), cond.pop("timestep")
        for name, value in cond.items():
            if value is not None and any(part in name for part in PER_STEP):
                raise ValueError(
                    f"{name} holds what a ControlNet or an adapter may make anew for every step, "
                    "so that no step can be taken ahead; restore(pipe) and run this pipeline "
                    "sequentially"
                )
        if not isinstance(time, Tensor):
            time = torch.as_tensor(time, device=x.device)
        return cls(x, time, _copied(cond), (input_name, "timestep"))

    @property
    def count(self) -> int:
        """Rows of the call."""
        return self.x.shape[0]

    @property
    def form(self) -> Any:
        """What the cost of a row depends on."""
        return self.count, tuple(self.x.shape), self.x.dtype, form(self.cond)

    def is_like(self, other: ModelCall) -> bool:
        """Whether the other call asks for the same, of another state."""
        return self.x.shape == other.x.shape and is_same(self.cond, other.cond)

    def cond_of(self, take: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The conditioning with other rows, what `take` makes of each tensor that has rows."""
        taken: dict[str, Any] = take_rows(self.cond, take, self.count)
        return taken

    def again(
        self, model: Callable[..., Any], x: Tensor, time: Tensor, cond: Mapping[str, Any]
    ) -> Tensor:
        """The model's output for inputs x [R, ...] at times [R] with conditioning of R rows."""
        named = dict(zip(self.names, (x, time), strict=True))
        out: Tensor = model(**named, **cond, return_dict=False)[0]
        return out


def output_shape(model: torch.nn.Module, x: Tensor) -> tuple[int, ...]:
    """Shape of the model's output for an input: images have channels first, packed tokens last."""
    config: Any = bare(model).config
    channels = config.get("out_channels") or config.get("in_channels") or x.shape[1]
    if x.dim() == 3:
        return (*x.shape[:2], channels)
    return (x.shape[0], channels, *x.shape[2:])


def first_channels(out: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Without the half of the channels that is about the variance."""
    return out if tuple(out.shape[1:]) == shape else out[:, : shape[0]]
