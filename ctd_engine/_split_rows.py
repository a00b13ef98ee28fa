"""Rows of a model call that are evaluated on many ranks."""

from __future__ import annotations

import torch

from ctd_engine._model_calls import Calls, ModelInputs
from ctd_engine._ranks import Ranks

__all__ = ["SplitCalls"]

# bytes before the rows of a rank: whether its model failed, and how many rows it was asked for
HEAD = 16


class SplitCalls:
    """Calls of a model whose rows are split evenly over ranks: all get all outputs.

    Every rank must be called with the same rows, and they may be of any requests. Rank r of n
    evaluates the r-th block of ceil(R / n) rows, so that what is gathered is in order. A rank
    without rows of its own evaluates the last row again: that costs no time, since others evaluate
    as many, and a model that is sharded over further ranks is called everywhere alike.

    One all-gather per call moves ceil(R / n) outputs and 16 bytes per rank, as bytes, in whatever
    dtype the model returns; the first call makes a small exchange besides, to agree on it. A model
    that raises on one rank raises on all, in the same round.

    Args:
        calls: the model on this rank's device.
        ranks: who shares the rows.
    """

    def __init__(self, calls: Calls, ranks: Ranks) -> None:
        self._calls = calls
        self._ranks = ranks
        # dtype and width of an output row
        self._form: tuple[torch.dtype, int] | None = None
        self._sent = self._received = torch.empty(0, dtype=torch.uint8, device=ranks.device)

    def __call__(self, inputs: ModelInputs) -> torch.Tensor:
        """Raw outputs [R, outputs * D] of all rows."""
        rows, size = len(inputs), self._ranks.size
        each = -(-rows // size)
        first = min(self._ranks.rank * each, rows - 1)
        out = error = None
        try:
            out = self._calls(inputs.piece(first, min(first + each, rows)))
        except Exception as caught:
            # the others wait in the gather
            error = caught
        if self._form is None:
            self._form = self._agree(out, error)
        elif out is not None and _form_of(out) != self._form:
            error = ValueError(
                f"model must return the same dtype in every call of a run, got {out.dtype} after "
                f"{self._form[0]}"
            )
        return self._gather(rows, each, out, error)

    def _agree(self, out: torch.Tensor | None, error: Exception | None) -> tuple[torch.dtype, int]:
        forms = self._ranks.settle(error, None if out is None else _form_of(out))
        for rank, form in enumerate(forms):
            if form != forms[0]:
                raise ValueError(
                    f"model must return the same dtype on every rank, got {forms[0][0]} on rank 0 "
                    f"and {form[0]} on rank {rank}"
                )
        return forms[0]

    def _gather(
        self, rows: int, each: int, out: torch.Tensor | None, error: Exception | None
    ) -> torch.Tensor:
        assert self._form is not None
        dtype, width = self._form
        size, payload = self._ranks.size, each * width * dtype.itemsize
        # whole words, so that every rank's part can be read as numbers where it is
        part = HEAD + -(-payload // HEAD) * HEAD
        if len(self._sent) < part:
            self._sent = self._sent.new_zeros(part)
            self._received = self._received.new_zeros(size * part)
        sent, received = self._sent[:part], self._received[: size * part]
        head = sent[:HEAD].view(torch.int64)
        head[0].fill_(error is not None)
        head[1].fill_(rows)
        if error is None and out is not None:
            sent[HEAD : HEAD + out.numel() * dtype.itemsize].view(dtype).copy_(out.flatten())
        self._ranks.gather(received, sent)
        parts = received.view(size, part)
        # sync: where one rank failed all must stop, before they go on with what it did not compute
        heads = parts[:, :HEAD].view(torch.int64).tolist()
        if any(has_failed for has_failed, _ in heads):
            self._ranks.settle(error)
        if any(asked != rows for _, asked in heads):
            raise RuntimeError(
                f"the ranks have come apart: asked for {[asked for _, asked in heads]} rows in one "
                "round; they need equal hardware, equal versions of torch and equal arguments"
            )
        # a copy in any case: it takes out the heads between the ranks' rows, and the next call may
        # come before these are used
        gathered = parts[:, HEAD : HEAD + payload].view(dtype)
        out_rows = gathered.clone(memory_format=torch.contiguous_format)
        return out_rows.view(size * each, width)[:rows]


def _form_of(out: torch.Tensor) -> tuple[torch.dtype, int]:
    return out.dtype, out.shape[1]
