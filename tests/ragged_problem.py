"""Ragged windows inside buffers of NaN, which the tests of the sampling operations share."""

from __future__ import annotations

import math

import torch

from ctd_engine.ops.picard_update import Coefficients, Windows

NUM_NODES, RING, NUM_SLOTS = 23, 9, 5
# entries of a round: slot, start, length; ragged, out of order, one wraps around the ring
ENTRIES = [(3, 0, 4), (0, 6, 6), (4, 17, 6), (1, 5, 1)]


def guarded(values, extra=64):
    """The same numbers inside a longer buffer: NaN, or -1 for integers, before and after them."""
    fill = math.nan if values.is_floating_point() else -1
    buffer = values.new_full((values.numel() + 2 * extra,), fill)
    inside = buffer[extra : extra + values.numel()].view(values.shape)
    return inside.copy_(values)


def other_layout(t):
    """The same numbers with every stride doubled, nothing but NaN or -1 in between."""
    wide = t.new_full((*t.shape, 2), math.nan if t.is_floating_point() else -1)
    wide[..., 0] = t
    return wide[..., 0]


def in_double(c):
    """The same solver in fp64."""
    return Coefficients(*(t.double() for t in (c.A, c.B, c.C, c.G, c.P, c.Q)), c.clip)


def problem(order, num_elements, dtype, *, clip=None, seed=0, device="cpu"):
    """Coefficients and a ring in which only the points that may be read hold numbers."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return guarded(values.to(device, dtype))

    a, b = randn(NUM_NODES, order), randn(NUM_NODES, order)
    for i in range(order - 1):
        a[i, i + 1 :], b[i, i + 1 :] = 0.0, 0.0
    coefficients = Coefficients(
        A=a,
        B=b,
        C=randn(NUM_NODES),
        G=randn(NUM_NODES, order),
        P=randn(NUM_NODES),
        Q=randn(NUM_NODES),
        clip=clip,
    )
    nothing = torch.full((NUM_SLOTS, RING, num_elements), math.nan, dtype=dtype, device=device)
    x, x0 = guarded(nothing), guarded(nothing)
    for slot, start, length in ENTRIES:
        for node in range(max(start - order + 1, 0), start + length + 1):
            x[slot, node % RING] = randn(num_elements)
        for node in range(max(start - order + 1, 0), start):
            x0[slot, node % RING] = randn(num_elements)
    rows = [
        (slot, node, entry, node - start)
        for entry, (slot, start, length) in enumerate(ENTRIES)
        for node in range(start, start + length)
    ]
    row_slot, row_node, row_entry, row_offset = (
        guarded(torch.tensor(c, device=device)) for c in zip(*rows, strict=True)
    )
    slot, start, length = (
        guarded(torch.tensor(c, device=device)) for c in zip(*ENTRIES, strict=True)
    )
    first_row = guarded(length.cumsum(0) - length)
    windows = Windows(
        slot, start, length, first_row, row_slot, row_node, row_entry, row_offset, int(length.max())
    )
    m, z = randn(len(rows), num_elements), randn(len(rows), num_elements)
    return coefficients, x, x0, windows, m, z
