"""Calls of the user's model: rows in, raw outputs out, checked, and fewer at a time if need be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ctd_engine._graphs import recording

__all__ = ["Calls", "ModelCalls", "ModelInputs", "is_out_of_memory"]

logger = logging.getLogger("ctd_engine")


@dataclass(frozen=True)
class ModelInputs:
    """Arguments of one model call: x [R, D], t [R], and `cond`, whose tensors have R rows."""

    x: torch.Tensor
    t: torch.Tensor
    cond: dict[str, Any]

    def __len__(self) -> int:
        return self.x.shape[0]

    def piece(self, begin: int, end: int) -> ModelInputs:
        """The rows from begin to end."""
        rows = slice(begin, end)
        cond = {
            name: value[rows] if isinstance(value, torch.Tensor) else value
            for name, value in self.cond.items()
        }
        return ModelInputs(self.x[rows], self.t[rows], cond)

    @staticmethod
    def joined(parts: Sequence[ModelInputs]) -> ModelInputs:
        """The rows of all parts one after the other; their conditioning has one form."""
        if len(parts) == 1:
            return parts[0]
        cond = {
            name: torch.cat([part.cond[name] for part in parts])
            if isinstance(value, torch.Tensor)
            else value
            for name, value in parts[0].cond.items()
        }
        return ModelInputs(
            torch.cat([part.x for part in parts]), torch.cat([part.t for part in parts]), cond
        )


# raw outputs [R, outputs * D] of a model for rows
Calls = Callable[[ModelInputs], torch.Tensor]


class ModelCalls:
    """A model as a function of rows `ModelInputs -> [R, outputs * D]`, in the model's own dtype.

    Where the model runs out of memory it is called again with half as many rows at a time, from
    then on; rows are independent, so that the numbers stay the same and nothing is lost.

    Args:
        model: the user's callable.
        shape: shape of one sample.
        outputs: channels that the model returns for every channel of its input, 2 with a learned
            variance.
        time_as_input: cast times to the dtype of the input.
        evaluations_per_row: model rows per row of `max_rows`, for the warning's advice.
    """

    def __init__(
        self,
        model: Any,
        shape: tuple[int, ...],
        outputs: int = 1,
        time_as_input: bool = False,
        evaluations_per_row: int = 1,
    ) -> None:
        self.model = model
        self.outputs = outputs
        self._shape = shape
        self._time_as_input = time_as_input
        self._evaluations_per_row = evaluations_per_row
        # rows per model call, once memory has run out
        self._most_rows: int | None = None

    def __call__(self, inputs: ModelInputs) -> torch.Tensor:
        rows = len(inputs)
        while True:
            most = min(self._most_rows or rows, rows)
            try:
                if most == rows:
                    return self._call(inputs)
                return torch.cat(
                    [self._call(inputs.piece(r, r + most)) for r in range(0, rows, most)]
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or most == 1 or _is_recorded():
                    raise
                message = str(error).partition("\n")[0] or type(error).__name__
            # out of the handler, which holds on to the tensors of the failed call
            self._halve(most, message)

    def _halve(self, rows: int, message: str) -> None:
        if self._most_rows is None:
            logger.warning(
                "out of memory in a model call of %d rows (%s); halving the rows per call and "
                "going on, slower and with the same result; max_rows=%d would avoid it",
                rows,
                message,
                max(1, rows // 2 // self._evaluations_per_row),
            )
        self._most_rows = rows // 2
        if torch.cuda.is_available():
            with recording:
                torch.cuda.empty_cache()

    def _call(self, inputs: ModelInputs) -> torch.Tensor:
        x = inputs.x.view(len(inputs), *self._shape)
        t = inputs.t.to(x.dtype) if self._time_as_input else inputs.t
        out = self.model(x, t, **inputs.cond)
        if not isinstance(out, torch.Tensor):
            raise TypeError(f"model must return a tensor, got {type(out).__name__}")
        expected = (len(x), self.outputs * x.shape[1], *x.shape[2:])
        if out.shape != expected:
            raise ValueError(
                f"model must return the shape of its input {tuple(x.shape)}, got "
                f"{tuple(out.shape)}; for a learned variance keep the first half of the channels"
                if self.outputs == 1
                else f"model must return {expected}, the outputs and then what it learned of their "
                f"variance, got {tuple(out.shape)}"
            )
        return out.reshape(len(x), -1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return "DefaultCPUAllocator: can't allocate memory" in str(error)


def _is_recorded() -> bool:
    # memory cannot be freed while a graph is captured; the round is tried again without
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
