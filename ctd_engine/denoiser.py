"""The one convention by which a sampler calls a model, with conditioning and guidance.

A model is any callable `model(x [R, *shape], t [R], **cond) -> [R, *shape]`. What its output means
(epsilon, x0, v, flow, EDM) and what its time input is are numbers in the `SolverTable`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from copy import copy
from typing import Any

import torch

from ctd_engine._model_calls import Calls, ModelCalls, ModelInputs
from ctd_engine._ranks import Ranks
from ctd_engine._repeated_rows import RepeatedRows
from ctd_engine._split_rows import SplitCalls

__all__ = ["Denoiser", "Model"]

Model = Callable[..., torch.Tensor]
Cond = Mapping[str, Any]


class Denoiser:
    """A model bound to the conditioning of one call of `sample`.

    Args:
        model: the user's callable.
        shape: shape of one sample.
        num_samples: B.
        cond: keyword arguments of the model. A tensor whose first dimension is B is indexed per
            row, so that row r gets the conditioning of its own sample; it must be on the device
            of the rows, and the model must not write to it. All else passes unchanged.
        null_cond: the unconditional counterpart, needed by guidance. A tensor with first
            dimension 1 is expanded.
        outputs: channels that the model returns for every channel of its input, 2 with a learned
            variance.
        time_as_input: cast times to the dtype of the input.
        guidance_scale: g in  m = m_null + g (m_cond - m_null)   (Ho and Salimans 2022, eq. 6 with
            g = 1 + w). None or 1 calls the model once per row, without guidance.

    Raises:
        ValueError: guidance without `null_cond`, different keys, or tensors of the wrong length.
    """

    def __init__(
        self,
        model: Model,
        shape: tuple[int, ...],
        num_samples: int,
        cond: Cond | None,
        null_cond: Cond | None,
        guidance_scale: float | None,
        outputs: int = 1,
        time_as_input: bool = False,
    ) -> None:
        self._cond = dict(cond or {})
        self._scale = 1.0 if guidance_scale is None else float(guidance_scale)
        self._null: dict[str, Any] | None = None
        self._repeated: dict[str, RepeatedRows] = {}
        self.outputs = outputs
        for name, value in self._cond.items():
            if isinstance(value, torch.Tensor) and (
                value.dim() == 0 or value.shape[0] != num_samples
            ):
                raise ValueError(
                    f"cond[{name!r}] must have one row per sample: first dimension {num_samples}, "
                    f"got shape {tuple(value.shape)}; expand it, or bind constants to the model "
                    "with functools.partial"
                )
        if self._scale != 1.0:
            self._null = self._check_null(null_cond, num_samples)
        self._model = model
        self.calls: Calls = ModelCalls(
            model, shape, outputs, time_as_input, self.evaluations_per_row
        )

    @property
    def evaluations_per_row(self) -> int:
        """Model rows per row of a round: 2 with guidance, else 1."""
        return 1 if self._null is None else 2

    def _check_null(self, null_cond: Cond | None, num_samples: int) -> dict[str, Any]:
        if not self._cond:
            raise ValueError("guidance_scale needs cond: there is nothing to guide towards")
        if null_cond is None:
            raise ValueError(
                "guidance_scale needs the sampler's null_cond: the model's keyword arguments for "
                f"'no condition', with the same keys as cond {sorted(self._cond)}"
            )
        if set(null_cond) != set(self._cond):
            raise ValueError(
                f"null_cond must have the keys of cond, {sorted(self._cond)}, "
                f"got {sorted(null_cond)}"
            )
        null: dict[str, Any] = {}
        for name, value in self._cond.items():
            other = null_cond[name]
            if isinstance(value, torch.Tensor):
                if not isinstance(other, torch.Tensor) or other.shape[1:] != value.shape[1:]:
                    got = tuple(other.shape) if isinstance(other, torch.Tensor) else type(other)
                    raise ValueError(
                        f"null_cond[{name!r}] must be a tensor [1 or {num_samples}, "
                        f"*{tuple(value.shape[1:])}], got {got}"
                    )
                if other.shape[0] not in (1, num_samples):
                    raise ValueError(
                        f"null_cond[{name!r}] must have 1 or {num_samples} rows, "
                        f"got {other.shape[0]}"
                    )
                other = other.to(value.device).expand(num_samples, *value.shape[1:])
            null[name] = other
        return null

    def own(self) -> Denoiser:
        """The same with copies of the conditioning's tensors, for `load` to overwrite."""
        other = copy(self)
        other._cond = {name: _copied(value) for name, value in self._cond.items()}
        if self._null is not None:
            other._null = {name: _copied(value) for name, value in self._null.items()}
        other._repeated = {}
        return other

    def part(self, first: int, last: int) -> Denoiser:
        """The same for samples first .. last - 1 alone."""
        other = copy(self)
        other._cond = {name: _cut(value, first, last) for name, value in self._cond.items()}
        if self._null is not None:
            other._null = {name: _cut(value, first, last) for name, value in self._null.items()}
        other._repeated = {}
        return other

    def over(self, ranks: Ranks) -> Denoiser:
        """The same with the rows of every call split over ranks."""
        other = copy(self)
        other.calls = SplitCalls(self.calls, ranks)
        return other

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The conditioning's tensors, by their names in an order that is always the same."""
        conds = (("cond", self._cond), ("null_cond", self._null or {}))
        return {
            f"{kind}[{name!r}]": value
            for kind, cond in conds
            for name, value in sorted(cond.items())
            if isinstance(value, torch.Tensor)
        }

    def load(self, other: Denoiser) -> None:
        """Take over the conditioning's numbers of another one of the same form, in place."""
        self._repeated = {}
        pairs = [(self._cond, other._cond), (self._null or {}, other._null or {})]
        for mine, theirs in pairs:
            for name, value in mine.items():
                if isinstance(value, torch.Tensor):
                    value.copy_(theirs[name])

    @property
    def form(self) -> Hashable | None:
        """What a recorded call depends on: all but the numbers in weights and conditioning.

        None if the model is no module: a recording reads weights where they were, and only a
        module tells that they have moved.
        """
        model = self._model
        if not isinstance(model, torch.nn.Module):
            return None
        weights = (*model.parameters(), *model.buffers())
        places = tuple((weight.data_ptr(), weight.dtype) for weight in weights)
        plain = tuple(
            (name, _identity(value))
            for module in model.modules()
            for name, value in vars(module).items()
        )
        cast = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        others = tuple(
            (name, _identity(value))
            for cond in (self._cond, self._null or {})
            for name, value in sorted(cond.items())
            if not isinstance(value, torch.Tensor)
        )
        return self.signature, self._scale, others, places, plain, cast

    @property
    def signature(self) -> Hashable:
        """What the cost of a row depends on besides the model: the conditioning's form."""
        forms = tuple(
            (name, tuple(value.shape[1:]), value.dtype, value.device)
            if isinstance(value, torch.Tensor)
            else (name, type(value))
            for name, value in sorted(self._cond.items())
        )
        return forms, self.evaluations_per_row

    @property
    def row_form(self) -> Hashable:
        """What must be equal for the rows of two requests to ride in one call of the model."""
        return tuple(
            (name, tuple(value.shape[1:]), value.dtype)
            if isinstance(value, torch.Tensor)
            else (name, _identity(value))
            for name, value in sorted(self._cond.items())
        )

    @property
    def guidance_scale(self) -> float:
        """g; 1 without guidance."""
        return self._scale

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, row_sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Raw outputs m and m_null [R, D], in the model's own dtype; no m_null without guidance.

        x [R, D] are scaled inputs, t [R] times, row_sample [R] whose rows they are. With guidance
        both halves go through the model in one call.
        """
        if self._null is not None:
            x, t = torch.cat([x, x]), torch.cat([t, t])
        return self.halves(self.calls(self.inputs(x, t, row_sample)))

    def inputs(self, x: torch.Tensor, t: torch.Tensor, row_sample: torch.Tensor) -> ModelInputs:
        """What the model is called with for rows [R] of these samples.

        x and t hold them `evaluations_per_row` times: with guidance those of null come first.
        """
        cond = {
            name: self._rows_of(name, value, row_sample)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in self._cond.items()
        }
        return ModelInputs(x, t, cond)

    def _rows_of(self, name: str, value: torch.Tensor, row_sample: torch.Tensor) -> torch.Tensor:
        both = [value] if self._null is None else [self._null[name], value]
        # elsewhere a recorded round reads where the rows were when it was recorded
        if value.shape[0] == 1 and value.device.type == "cpu":
            if name not in self._repeated:
                self._repeated[name] = RepeatedRows(*(part[0] for part in both))
            return self._repeated[name](len(row_sample))
        parts = [part[row_sample] for part in both]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def halves(self, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """m and m_null from the model's outputs for `inputs`."""
        if self._null is None:
            return out, None
        rows = len(out) // 2
        return out[rows:], out[:rows]


def _identity(value: Any) -> Hashable:
    return value if isinstance(value, (bool, int, float, str)) else id(value)


def _cut(value: Any, first: int, last: int) -> Any:
    return value[first:last] if isinstance(value, torch.Tensor) else value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
