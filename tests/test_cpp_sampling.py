"""The C++ kernels against their references: the same bits, inside buffers of NaN."""

from __future__ import annotations

import math

import pytest
import torch

from closeness import assert_close_to_reference
from ctd_engine import _ext
from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import Coefficients, Windows, picard_update_
from ctd_engine.ops.picard_update.cpp import CHUNK
from ctd_engine.ops.predict_guess import predict_guess_
from ctd_engine.ops.record_points import record_points_
from ctd_engine.ops.trajectory_error import trajectory_error
from ragged_problem import ENTRIES, NUM_NODES, NUM_SLOTS, RING, guarded, in_double, problem

pytestmark = pytest.mark.skipif(
    _ext.unavailable_reason() is not None, reason=f"no extension: {_ext.unavailable_reason()}"
)

SEEDS = torch.tensor([5, -7, 2**62, 0])
SIZES = [1, 3, 4, 7, 64, CHUNK - 1, CHUNK, CHUNK + 5]


def inside(windows):
    return torch.arange(windows.max_length) < windows.length[:, None]


def assert_same(one, other):
    """The same bits, NaN in the same places."""
    assert one.shape == other.shape
    assert torch.equal(one.isnan(), other.isnan())
    assert torch.equal(one.nan_to_num(), other.nan_to_num())


def update(
    backend, order, num_elements, dtype, noise="none", *, clip=None, guided=0.0, m_dtype=None
):
    """x, x0 and the sums of squares after one update."""
    c, x, x0, windows, m, z = problem(order, num_elements, dtype, clip=clip)
    m = m.to(m_dtype or dtype)
    sums = picard_update_(
        x,
        x0,
        m,
        windows,
        c,
        z=z if noise == "given" else None,
        seeds=SEEDS if noise == "counter" else None,
        m_null=guarded(0.5 * m + 0.25) if guided else None,
        guidance_scale=guided or 1.0,
        backend=backend,
    )
    return x, x0, sums.sum(2)[inside(windows)]


@pytest.mark.parametrize("noise", ["none", "given"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_elements", SIZES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_update_has_the_bits_of_the_reference(order, num_elements, dtype, noise):
    """Ragged windows between points of NaN, a ring that wraps, chunks that end in the middle."""
    x, x0, sums = update("cpp", order, num_elements, dtype, noise)
    want_x, want_x0, want_sums = update("reference", order, num_elements, dtype, noise)
    assert_same(x, want_x)
    assert_same(x0, want_x0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(sums, want_sums, rtol=100 * eps, atol=0.0)


@pytest.mark.parametrize("m_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("clip", "guided"), [(0.5, 0.0), (None, 2.5), (0.5, 2.5)])
def test_update_of_other_outputs_clipped_and_guided(dtype, m_dtype, clip, guided):
    options = dict(clip=clip, guided=guided, m_dtype=m_dtype)
    for got, want in zip(
        update("cpp", 2, 37, dtype, "given", **options)[:2],
        update("reference", 2, 37, dtype, "given", **options)[:2],
        strict=True,
    ):
        assert_same(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_elements", [1, 7, CHUNK + 5])
def test_update_with_counter_noise(num_elements, dtype):
    """Normals may differ in the last bit of fp64, from which fp32 is rounded."""
    fused = update("cpp", 3, num_elements, dtype, "counter")
    plain = update("reference", 3, num_elements, dtype, "counter")
    c, x, x0, windows, m, _ = problem(3, num_elements, dtype)
    wide = [t.double() for t in (x, x0, m)]
    sums = picard_update_(*wide, windows, in_double(c), seeds=SEEDS, backend="reference")
    exact = (*wide[:2], sums.sum(2)[inside(windows)])
    for results in zip(fused, plain, exact, strict=True):
        assert_close_to_reference(*results, ulps=16.0)


def test_update_with_other_strides():
    """Every tensor is a slice of a larger one, each with its own stride, in a sea of NaN."""
    c, x, x0, windows, m, z = problem(2, 6, torch.float64)
    m_null = 0.5 * m + 0.25
    plain = x.clone(), x0.clone()
    guidance = dict(m_null=m_null, guidance_scale=2.5)
    picard_update_(*plain, m, windows, c, z=z, **guidance, backend="reference")

    def widened(tensor, extra):
        wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + extra), math.nan)
        wide[..., : tensor.shape[-1]] = tensor
        return wide, wide[..., : tensor.shape[-1]]

    (wide_x, x), (wide_x0, x0), (_, m), (_, z), (_, m_null) = (
        widened(tensor, extra) for tensor, extra in ((x, 3), (x0, 5), (m, 1), (z, 2), (m_null, 4))
    )
    guidance = dict(m_null=m_null, guidance_scale=2.5)
    picard_update_(x, x0, m, windows, c, z=z, **guidance, backend="cpp")
    for got, want in zip((x, x0), plain, strict=True):
        assert_same(got, want)
    assert wide_x[..., 6:].isnan().all()
    assert wide_x0[..., 6:].isnan().all()


def test_update_of_transposed_outputs_and_strided_indices():
    """What does not lie side by side is copied."""

    def spread(t):
        wide = t.new_full((*t.shape, 2), -1 if t.dtype == torch.int64 else math.nan)
        wide[..., 0] = t
        return wide[..., 0]

    c, x, x0, w, m, z = problem(2, 6, torch.float64)
    plain = x.clone(), x0.clone()
    picard_update_(*plain, m, w, c, z=z, backend="reference")
    columns = (w.slot, w.start, w.length, w.first_row)
    by_row = (w.row_slot, w.row_node, w.row_entry, w.row_offset)
    w = Windows(*(spread(t) for t in (*columns, *by_row)), w.max_length)
    c = Coefficients(*(spread(t) for t in (c.A, c.B, c.C, c.G, c.P, c.Q)), c.clip)
    picard_update_(x, x0, m.T.contiguous().T, w, c, z=spread(z), backend="cpp")
    for got, want in zip((x, x0), plain, strict=True):
        assert_same(got, want)


def test_update_touches_only_its_windows():
    c, x, x0, windows, m, z = problem(2, 5, torch.float64)
    x, x0 = x.nan_to_num(7.0), x0.nan_to_num(7.0)
    before = x.clone(), x0.clone()
    picard_update_(x, x0, m, windows, c, z=z, backend="cpp")
    may_change = torch.zeros(2, NUM_SLOTS, RING, dtype=torch.bool)
    for slot, start, length in ENTRIES:
        for node in range(start, start + length):
            may_change[0, slot, (node + 1) % RING] = True
            may_change[1, slot, node % RING] = True
    for now, then, mask in zip((x, x0), before, may_change, strict=True):
        assert torch.equal(now[~mask], then[~mask])
        assert (now[mask] != then[mask]).any()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_points_that_do_not_change_keep_their_bits(order):
    c, x, x0, windows, m, z = problem(order, 33, torch.float32)
    for _ in range(windows.max_length):
        picard_update_(x, x0, m, windows, c, z=z, backend="cpp")
    done = x.clone()
    sums = picard_update_(x, x0, m, windows, c, z=z, backend="cpp").sum(2)
    assert_same(x, done)
    assert (sums[inside(windows)] == 0).all()


def test_nan_stays_in_its_sample_and_behind_its_point():
    c, x, x0, windows, m, z = problem(2, 5, torch.float64, clip=0.5)
    # node 8 of the second entry, its third point
    bad = int(((windows.row_slot == 0) & (windows.row_node == 8)).nonzero())
    m[bad, 2] = math.nan
    sums = picard_update_(x, x0, m, windows, c, z=z, backend="cpp")
    length = windows.length
    num_finite = torch.tensor([4, 2, 6, 1])
    accepted, finite = trajectory_error(
        sums, 5, torch.full((NUM_NODES + 1,), 1e9).double(), windows.start, length, backend="cpp"
    )
    assert torch.equal(finite, num_finite)
    assert torch.equal(accepted, num_finite)


def long_problem(dtype):
    """Two windows of 5 points and so many elements that three threads share them."""
    generator = torch.Generator().manual_seed(0)
    num_elements, length = 41_003, 5

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    c = Coefficients(randn(9, 2), randn(9, 2), randn(9), randn(9, 2), randn(9), randn(9), clip=None)
    x, x0 = randn(2, length + 2, num_elements), randn(2, length + 2, num_elements)
    slot, rows = torch.arange(2), torch.arange(2 * length)
    entry, offset = rows // length, rows % length
    full = torch.full_like(slot, length)
    w = Windows(
        slot, 1 + slot, full, length * slot, entry, 1 + entry + offset, entry, offset, length
    )
    return c, x, x0, w, randn(2 * length, num_elements)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_threads_change_no_bit(dtype):
    results = []
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 3, 3):
            torch.set_num_threads(num_threads)
            c, x, x0, w, m = long_problem(dtype)
            seeds = torch.tensor([3, 4])
            known, count = w.start + 1, torch.tensor([4, 5])
            predict_guess_(x, x0, w.slot, known, count, 5, c, seeds=seeds, backend="cpp")
            scale = c.P
            rows, _ = gather_rows(x, w.row_slot, w.row_node, scale, scale, dtype, backend="cpp")
            sums = picard_update_(x, x0, m, w, c, seeds=seeds, backend="cpp")
            results.append((x, x0, rows, sums))
    finally:
        torch.set_num_threads(threads)
    for one, *others in zip(*results, strict=True):
        for other in others:
            assert torch.equal(one, other)
    _, x, x0, _, _ = long_problem(dtype)
    assert not torch.equal(results[0][0][:, 1:], x[:, 1:])
    assert not torch.equal(results[0][1], x0)


@pytest.mark.parametrize("noise", ["none", "given", "counter"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_elements", [1, 6, CHUNK + 5])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_guess_matches_reference(order, num_elements, dtype, noise):
    """Before the first call, in the middle, no new point, and at the last node around the ring."""
    new = [(3, 0, 3), (0, 12, 1), (1, 7, 0), (4, 20, 3)]
    slot, known, count = (guarded(torch.tensor(column)) for column in zip(*new, strict=True))
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    c, x, x0, _, _, _ = problem(order, num_elements, dtype)
    x.fill_(math.nan), x0.fill_(math.nan)
    # noise beyond a count is never read
    z = guarded(torch.full((len(new), 3, num_elements), math.nan, dtype=dtype))
    for entry, (s, k, n) in enumerate(new):
        for back in range(min(order, k + 1)):
            x[s, (k - back) % RING] = randn(num_elements)
        x0[s, (k - 1) % RING] = randn(num_elements)
        z[entry, :n] = randn(n, num_elements)
    # a predecessor's, before the first call
    x0[3, -1 % RING] = math.nan
    options = dict(z=z if noise == "given" else None, seeds=SEEDS if noise == "counter" else None)
    results = []
    for backend in ("cpp", "reference"):
        state = x.clone()
        predict_guess_(state, x0, slot, known, count, 3, c, **options, backend=backend)
        results.append(state)
    got, want = results
    assert torch.equal(got.isnan(), want.isnan())
    tolerance = 16 * torch.finfo(dtype).eps * float(want.nan_to_num().abs().max())
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("out", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_elements", [1, 7, CHUNK + 5])
def test_gather_has_the_bits_of_the_reference(num_elements, dtype, out):
    _, x, _, w, _, _ = problem(1, num_elements, dtype)
    scale = guarded(torch.rand(NUM_NODES, generator=torch.Generator().manual_seed(2)).to(dtype))
    times = torch.arange(NUM_NODES, dtype=dtype)
    arguments = (x, w.row_slot, w.row_node, scale, times, out)
    rows, time = gather_rows(*arguments, backend="cpp")
    want_rows, want_time = gather_rows(*arguments, backend="reference")
    assert rows.dtype == out
    assert torch.equal(rows, want_rows)
    assert torch.isfinite(rows).all()
    assert torch.equal(time, want_time)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("blocks", [1, 3])
def test_error_matches_reference(blocks, dtype):
    """Equality converges; NaN and infinity do not; beyond a length nothing is looked at."""
    sums = torch.tensor(
        [
            [1.0, 1.0, 1.0, 1.0],
            [1.0, 2.0, 1.0, 1.0],
            [2.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, math.nan, 1.0],
            [math.nan, 1.0, 1.0, 1.0],
            [1.0, math.inf, 1.0, 1.0],
            [1.0, 1.0, math.nan, math.nan],
            [math.nan, math.nan, math.nan, math.nan],
        ],
        dtype=dtype,
    )
    partials = guarded(8.0 * sums[:, :, None].repeat(1, 1, blocks) / blocks)
    if blocks == 3:
        partials = 8.0 * torch.stack([sums / 2, sums / 4, sums / 4], dim=2)
    threshold = guarded(torch.ones(NUM_NODES + 1, dtype=dtype))
    start = guarded(torch.tensor([0, 5, 7, 2, 1, 9, 3, 0]))
    length = guarded(torch.tensor([4, 4, 4, 4, 4, 4, 2, 0]))
    accepted, finite = trajectory_error(partials, 8, threshold, start, length, backend="cpp")
    assert accepted.tolist() == [4, 2, 1, 2, 1, 1, 2, 1]
    assert finite.tolist() == [4, 4, 4, 2, 0, 1, 2, 0]
    want = trajectory_error(partials, 8, threshold, start, length, backend="reference")
    assert torch.equal(accepted, want[0])
    assert torch.equal(finite, want[1])


def test_the_cpu_takes_the_kernels_by_itself(monkeypatch):
    """fp32 and fp64 states without gradient; all else goes to the reference."""
    called = []
    module = _ext.load(required=True)
    for name in ("gather_rows_float32", "gather_rows_float64"):
        kernel = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda kernel=kernel, name=name, **a: (called.append(name), kernel(**a))
        )
    index = torch.zeros(2, dtype=torch.int64)
    for dtype in (torch.float32, torch.float64):
        x, scale = torch.ones(1, 3, 4, dtype=dtype), torch.ones(5, dtype=dtype)
        gather_rows(x, index, index, scale, scale, dtype)
    assert called == ["gather_rows_float32", "gather_rows_float64"]
    rows, _ = gather_rows(x.requires_grad_(), index, index, scale, scale, dtype)
    assert rows.requires_grad
    assert len(called) == 2


def bad_window(**changes):
    c, x, x0, w, m, _ = problem(2, 6, torch.float32)
    columns = {name: getattr(w, name).clone() for name in ("slot", "start", "length", "first_row")}
    for name, value in changes.items():
        columns[name][1] = value
    by_row = (w.row_slot, w.row_node, w.row_entry, w.row_offset)
    w = Windows(*columns.values(), *by_row, w.max_length)
    picard_update_(x, x0, m, w, c, backend="cpp")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"slot": NUM_SLOTS}, "slots 5 to 6 lie outside of the 5"),
        ({"slot": -1}, "slots -1 to 0 lie outside"),
        ({"start": 18}, "nodes 18 to 24 lie outside of the 23"),
        ({"first_row": 12}, "rows 12 to 18 lie outside of the 17"),
        ({"start": 0, "length": 7}, "points of a window 0 to 7 lie outside of the 6"),
    ],
    ids=str,
)
def test_indices_that_point_outside_are_refused(changes, match):
    with pytest.raises(IndexError, match=match):
        bad_window(**changes)


def test_a_named_backend_that_cannot_run_tells_every_reason(monkeypatch):
    state = torch.empty(2, 3, 4, dtype=torch.float16, device="meta", requires_grad=True)
    monkeypatch.setattr(_ext, "_import", lambda: (None, "no such file"))
    with pytest.raises(RuntimeError, match='backend "cpp" cannot run on these inputs') as error:
        resolve("cpp", state, has_cpp=True)
    message = str(error.value)
    assert message.count("\n    - ") == 4
    for part in ("cannot be loaded (no such file)", "are on meta", "float16", "gradient"):
        assert part in message
    with pytest.raises(RuntimeError, match="this operation has no C\\+\\+ kernel"):
        resolve("cpp", state)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("num_elements", [1, 7])
def test_record_keeps_the_points_of_windows_alone(num_elements, backend):
    _, x, _, w, _, _ = problem(1, num_elements, torch.float64)
    sample = guarded(torch.tensor([2, 0, 5, 1]))
    record = guarded(torch.full((6, NUM_NODES + 1, num_elements), math.nan).double())
    want = record.clone()
    for (slot, start, length), b in zip(ENTRIES, sample.tolist(), strict=True):
        for node in range(start + 1, start + 1 + length):
            want[b, node] = x[slot, node % RING]
    arguments = (record, x, w.slot, sample, w.start + 1, w.length, w.max_length)
    record_points_(*arguments, spare=0, backend=backend)
    assert_same(record[:, 1:], want[:, 1:])
    assert torch.isfinite(record[:, 1:]).any(2).sum() == sum(length for _, _, length in ENTRIES)


def test_record_refuses_nodes_that_it_has_no_place_for():
    _, x, _, w, _, _ = problem(1, 3, torch.float64)
    record = torch.zeros(6, 20, 3, dtype=torch.float64)
    arguments = (x, w.slot, torch.arange(4), w.start + 1, w.length, w.max_length)
    with pytest.raises(IndexError, match="nodes 18 to 24 lie outside of the 20"):
        record_points_(record, *arguments, spare=0, backend="cpp")
    with pytest.raises(ValueError, match=r"record must have shape \(6, 20, 3\) = \[B, M, D\]"):
        record_points_(record[:, :, :2], *arguments, spare=0)
