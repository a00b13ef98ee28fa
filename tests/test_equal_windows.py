"""Windows of one length take a way of their own through the reference; the numbers are the same."""

from __future__ import annotations

import pytest
import torch

from ctd_engine.ops.picard_update import Coefficients, Windows, picard_update_

NODES, RING, SIZE = 12, 8, 5


def windows(entries):
    slot, start, length = (torch.tensor(column) for column in zip(*entries, strict=True))
    entry = torch.arange(len(entries)).repeat_interleave(length)
    first = length.cumsum(0) - length
    offset = torch.arange(len(entry)) - first[entry]
    return Windows(
        slot, start, length, first, slot[entry], start[entry] + offset, entry, offset, max_length=4
    )


@pytest.mark.parametrize("order", [1, 2])
def test_a_shorter_window_beside_them_changes_nothing(order):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, b, g = randn(NODES, order), randn(NODES, order), randn(NODES, order)
    table = Coefficients(a, b, randn(NODES), g, randn(NODES), randn(NODES), None)
    x, x0 = randn(3, RING, SIZE), randn(3, RING, SIZE)
    equal, ragged = windows([(2, 1, 4), (0, 6, 4)]), windows([(2, 1, 4), (0, 6, 4), (1, 3, 2)])
    m, z = randn(10, SIZE), randn(10, SIZE)
    out = []
    for chosen in (equal, ragged):
        rows = len(chosen.row_slot)
        states, estimates = x.clone(), x0.clone()
        squares = picard_update_(
            states, estimates, m[:rows], chosen, table, z=z[:rows], backend="reference"
        )
        out.append((squares[:2], states[[0, 2]], estimates[[0, 2]]))
    for one, other in zip(*out, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(out[0][1], x[[0, 2]])
