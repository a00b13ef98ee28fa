"""Conditioning of one sample, copied once for all rounds."""

from __future__ import annotations

import pytest
import torch

from ctd_engine._repeated_rows import RepeatedRows
from ctd_engine.denoiser import Denoiser


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_rows_are_each_one_as_often_as_asked(copies):
    rows = [torch.arange(6.0).view(2, 3) + 10 * k for k in range(copies)]
    repeated = RepeatedRows(*rows)
    for count in (1, 4, 2, 4, 5, 3):
        got = repeated(count)
        assert torch.equal(got, torch.stack(rows).repeat_interleave(count, dim=0))
        assert got.is_contiguous()


@pytest.mark.parametrize("copies", [1, 2])
def test_fewer_rows_are_no_copy(copies):
    repeated = RepeatedRows(*torch.arange(float(copies)))
    memory = repeated(5).untyped_storage().data_ptr()
    for count in (3, 1, 5):
        assert repeated(count).untyped_storage().data_ptr() == memory
    assert repeated(6).untyped_storage().data_ptr() != memory


@pytest.mark.parametrize("guided", [False, True])
def test_one_sample_gets_the_rows_that_many_get(guided):
    """The denoiser's rows of sample 1 of 3, and those of the same conditioning alone."""
    cond = {"a": torch.arange(6.0).view(3, 2), "b": torch.arange(3), "c": "shared"}
    null = {"a": torch.full((1, 2), -1.0), "b": torch.tensor([-1]), "c": "shared"}
    scale = 2.0 if guided else None
    many = Denoiser(None, (4,), 3, cond, null, scale)
    alone = many.part(1, 2)
    copies = many.evaluations_per_row
    for rows in (1, 5, 2):
        x, t = torch.zeros(copies * rows, 4), torch.zeros(copies * rows)
        want = many.inputs(x, t, torch.ones(rows, dtype=torch.int64)).cond
        got = alone.inputs(x, t, torch.zeros(rows, dtype=torch.int64)).cond
        assert len(got["a"]) == copies * rows
        assert got["c"] == want["c"] == "shared"
        for name in ("a", "b"):
            assert torch.equal(got[name], want[name])


def test_other_conditioning_is_not_what_was_kept():
    """`load` overwrites, and `own` and `part` have their own."""

    def rows_of(denoiser):
        return denoiser.inputs(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2).long()).cond["a"]

    first = Denoiser(None, (4,), 1, {"a": torch.tensor([1.0])}, None, None)
    second = Denoiser(None, (4,), 1, {"a": torch.tensor([2.0])}, None, None)
    assert rows_of(first).tolist() == [1.0, 1.0]
    own = first.own()
    own.load(second)
    assert rows_of(own).tolist() == [2.0, 2.0]
    assert rows_of(first).tolist() == [1.0, 1.0]
    own.load(first)
    assert rows_of(own).tolist() == [1.0, 1.0]
    many = Denoiser(None, (4,), 2, {"a": torch.tensor([3.0, 4.0])}, None, None)
    parts = [many.part(k, k + 1) for k in range(2)]
    assert [rows_of(part).tolist() for part in parts] == [[3.0, 3.0], [4.0, 4.0]]
    again = parts[0].part(0, 1)
    assert again._repeated is not parts[0]._repeated
