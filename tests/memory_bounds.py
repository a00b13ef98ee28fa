"""Bounds for kernels in Triton's interpreter, which reads and writes wherever it is told to."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from triton.runtime import interpreter


def addresses(tensor):
    """Where the tensor's elements lie, in no order."""
    offsets = np.zeros((), dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + np.arange(size) * stride
    return (tensor.data_ptr() + tensor.element_size() * offsets).ravel()


@contextmanager
def only_elements_of_the_arguments():
    """Fail on an access, not masked, to what is no element of a tensor that the kernel was given.

    Yields the number of checked accesses so far, by "load" and "store". Tensors that an address
    may run into by mistake must not be arguments too: `ragged_problem.guarded` keeps them apart.
    """
    counts = {"load": 0, "store": 0}
    allowed = np.zeros(0, dtype=np.uint64)
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    run, load, store = executor.__call__, builder.create_masked_load, builder.create_masked_store

    def check(which, pointers, mask):
        used = pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)]
        outside = ~np.isin(used.astype(np.uint64), allowed)
        if outside.any():
            raise AssertionError(f"{which} of {outside.sum()} addresses outside every argument")
        counts[which] += used.size

    def checked_run(self, *args, **named):
        nonlocal allowed
        tensors = [t for t in (*args, *named.values()) if isinstance(t, torch.Tensor)]
        allowed = np.unique(np.concatenate([addresses(t) for t in tensors])).astype(np.uint64)
        return run(self, *args, **named)

    def checked_load(self, ptrs, mask, *rest, **named):
        check("load", ptrs, mask)
        return load(self, ptrs, mask, *rest, **named)

    def checked_store(self, ptrs, value, mask, *rest, **named):
        check("store", ptrs, mask)
        return store(self, ptrs, value, mask, *rest, **named)

    executor.__call__ = checked_run
    builder.create_masked_load = checked_load
    builder.create_masked_store = checked_store
    try:
        yield counts
    finally:
        executor.__call__ = run
        builder.create_masked_load = load
        builder.create_masked_store = store
