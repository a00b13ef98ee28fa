"""A pipeline's model, conditioning and guidance as `model(x [R, *shape], t [R], rows [R])`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctd_engine._repeated_rows import RepeatedRows
from ctd_engine.integrations.diffusers._calls import ModelCall, first_channels
from ctd_engine.integrations.diffusers._mix import Mix

__all__ = ["RowModel"]


class RowModel:
    """What a pipeline's step computes from latents, for any rows of any samples and steps.

    Rows of one call stay in the pipeline's order, all of one branch after all of another, because
    some attention processors count on it.

    Args:
        model: the pipeline's.
        calls: the calls of one step.
        mix: how the pipeline combines their rows.
        divisor: the pipeline divides timesteps by it before it tells the model.

    Attributes:
        form: what the cost of a row depends on.
    """

    def __init__(
        self, model: torch.nn.Module, calls: Sequence[ModelCall], mix: Mix, divisor: float
    ) -> None:
        self._model = model
        self.load(calls, mix, divisor)

    def load(self, calls: Sequence[ModelCall], mix: Mix, divisor: float) -> None:
        """Take over other calls; what a row costs stays known if they have the same form."""
        device = calls[0].x.device
        self._divisor = divisor
        self._scales = mix.scales.to(device)
        # of the second of two branches, where it is one for all samples; both sum to 1
        is_one = mix.scales.shape[1] == 2 and bool((mix.scales == mix.scales[:1]).all())
        self._weight = float(mix.scales[0, 1]) if is_one else None
        self._calls: list[tuple[ModelCall, Tensor, list[int]]] = []
        self._forget_rows()
        begin = 0
        for call in calls:
            end = begin + call.count
            is_here = (mix.rows >= begin) & (mix.rows < end)
            if not bool((is_here.all(0) | ~is_here.any(0)).all()):
                raise ValueError(
                    "a branch of guidance must lie in one model call for all samples; "
                    "restore(pipe) and run this pipeline sequentially"
                )
            branches = is_here[0].nonzero()[:, 0].tolist()
            if branches:
                self._calls.append((call, (mix.rows[:, branches] - begin).to(device), branches))
            begin = end
        self.form = tuple((call.form, tuple(branches)) for call, _, branches in self._calls)

    def forget(self) -> None:
        """Let go of the conditioning; `load` brings other."""
        self._calls = []
        self._forget_rows()

    def _forget_rows(self) -> None:
        # by call: its rows and their conditioning; by call and tensor: that tensor's rows
        self._kept: dict[int, tuple[int, dict[str, Any]]] = {}
        self._repeated: dict[tuple[int, int], RepeatedRows] = {}

    def __call__(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """The combined output [R, *shape] for samples `rows`."""
        parts: list[Tensor] = []
        for number, (call, at, branches) in enumerate(self._calls):
            copies = len(branches)
            time = t.to(call.time.dtype)
            time = time if self._divisor == 1 else time / self._divisor
            out = call.again(
                self._model,
                # several times faster than `repeat`
                torch.cat([x] * copies),
                torch.cat([time] * copies),
                self._cond(number, call, at, rows),
            )
            parts += first_channels(out, tuple(x.shape[1:])).chunk(copies)
        if len(parts) == 1:
            return parts[0]
        dtype = torch.promote_types(parts[0].dtype, torch.float32)
        if self._weight is not None:
            return torch.lerp(parts[0].to(dtype), parts[1].to(dtype), self._weight)
        # those of a single sample hold for all rows
        scales = self._scales if self._scales.shape[0] == 1 else self._scales[rows]
        first, *others = scales.to(dtype).view(*scales.shape, *[1] * (x.dim() - 1)).unbind(1)
        combined = first * parts[0]
        for scale, part in zip(others, parts[1:], strict=True):
            combined.addcmul_(scale, part.to(dtype))
        return combined

    def _cond(self, number: int, call: ModelCall, at: Tensor, rows: Tensor) -> dict[str, Any]:
        """Conditioning of the rows, kept where all rows of a round are of one sample."""
        if len(at) > 1 or rows.device.type == "cuda":
            # there a recorded round reads where the tensors were when it was recorded
            picked = at[rows].T.flatten()
            return call.cond_of(lambda value: value[picked.to(value.device)])
        num_rows = len(rows)
        size, kept = self._kept.get(number, (0, {}))
        if size != num_rows:
            kept = call.cond_of(lambda value: self._repeat(number, value, at[0])(num_rows))
            self._kept[number] = (num_rows, kept)
        return kept

    def _repeat(self, number: int, value: Tensor, at: Tensor) -> RepeatedRows:
        # the call holds on to the tensor, so that its id stays its own
        key = (number, id(value))
        if key not in self._repeated:
            self._repeated[key] = RepeatedRows(*value[at.to(value.device)])
        return self._repeated[key]
