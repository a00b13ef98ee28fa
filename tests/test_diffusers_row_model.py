"""A pipeline's rows for the model of a round: conditioning, guidance, precision."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from ctd_engine.integrations.diffusers._calls import ModelCall
from ctd_engine.integrations.diffusers._mix import Mix
from ctd_engine.integrations.diffusers._row_model import RowModel

# one row per (branch, sample), branches one after the other as pipelines have them
EMBEDS = torch.arange(1.0, 7.0)[:, None].expand(6, 4).contiguous()


class Seen:
    """A model of latents [R, 2, 2], embeddings and nested conditioning; keeps what it was told."""

    def __init__(self, dtype=torch.float32):
        self.told = []
        self._dtype = dtype

    def __call__(self, sample, timestep, embeds, added, return_dict):
        self.told.append((embeds.clone(), added["ids"].clone(), added["names"]))
        per_row = embeds[:, :1, None] + 10.0 * added["ids"][:, None, None]
        return ((sample * per_row + timestep[:, None, None]).to(self._dtype),)


def call_of(embeds, count):
    added = {"ids": torch.arange(float(count)), "names": ["x", "y"]}
    cond = {"embeds": embeds, "added": added}
    return ModelCall(torch.zeros(count, 2, 2), torch.tensor(7.0), cond, ("sample", "timestep"))


def mix_of(rows, scales):
    rows, scales = torch.tensor(rows), torch.tensor(scales, dtype=torch.float64)
    samples = torch.arange(len(rows))
    return Mix(torch.empty(0), samples, samples, rows, scales)


def expected(x, t, model_rows, scales, dtype):
    """The sum over branches, each of one row of EMBEDS."""
    out = torch.zeros_like(x, dtype=torch.float64)
    for scale, row in zip(scales.T, model_rows.T, strict=True):
        per_row = (row + 1.0) + 10.0 * row
        m = (x * per_row[:, None, None] + t[:, None, None]).to(dtype).double()
        out += scale[:, None, None] * m
    return out


ONE = ([[1, 4]], [[-1.5, 2.5]])
CASES = {
    "one sample": ONE,
    "one branch": ([[2]], [[1.0]]),
    "three branches": ([[0, 2, 5]], [[-1.0, 1.5, 0.5]]),
    "samples of one scale": ([[0, 3], [1, 4], [2, 5]], [[-1.5, 2.5]] * 3),
    "samples of their own scales": ([[0, 3], [1, 4]], [[-1.5, 2.5], [-0.25, 1.25]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "scales"), CASES.values(), ids=CASES.keys())
def test_rows_of_any_number(rows, scales, dtype):
    """Windows grow and shrink; each row has the branches of its own sample."""
    mix = mix_of(rows, scales)
    model = Seen(dtype)
    row_model = RowModel(model, [call_of(EMBEDS, 6)], mix, 1.0)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 5, 3, 5, 7, 2):
        x = torch.randint(-3, 4, (count, 2, 2), generator=generator).float()
        t = torch.arange(float(count))
        samples = torch.arange(count) % len(rows)
        got = row_model(x, t, samples)
        assert got.dtype == (dtype if len(rows[0]) == 1 else torch.float32)
        of_rows = mix.rows[samples], mix.scales[samples]
        want = expected(x, t, *of_rows, dtype)
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-4)
        embeds, ids, names = model.told[-1]
        # all rows of one branch after all of another
        assert torch.equal(ids, of_rows[0].T.flatten().float())
        assert torch.equal(embeds, EMBEDS[of_rows[0].T.flatten()])
        assert names == ["x", "y"]


def test_branches_in_two_calls_with_the_same_tensor():
    """Each call takes its own row of it."""
    shared = EMBEDS[:2]
    calls = [call_of(shared, 2), call_of(shared, 2)]
    model = Seen()
    row_model = RowModel(model, calls, mix_of([[0, 3]], [[-1.0, 2.0]]), 1.0)
    for count in (2, 4, 3):
        row_model(torch.ones(count, 2, 2), torch.zeros(count), torch.zeros(count).long())
        for (embeds, ids, _), row in zip(model.told[-2:], (0, 1), strict=True):
            assert torch.equal(embeds, shared[[row] * count])
            assert ids.tolist() == [row] * count


def test_calls_that_are_loaded_take_the_place_of_those_before():
    row_model = RowModel(Seen(), [call_of(EMBEDS, 6)], mix_of(*ONE), 1.0)
    x, t, samples = torch.ones(4, 2, 2), torch.zeros(4), torch.zeros(4).long()
    before = row_model(x, t, samples)
    row_model.load([call_of(2.0 * EMBEDS, 6)], mix_of([[1, 4]], [[-1.0, 2.0]]), 1.0)
    got = row_model(x, t, samples)
    # (4 + 10) and (10 + 40), the rows of before with embeddings twice as large
    assert torch.equal(got, torch.full_like(x, -1.0 * 14.0 + 2.0 * 50.0))
    assert not torch.equal(before, got)
