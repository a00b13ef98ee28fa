"""The sampler on Triton's kernels gives what it gives on the references."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ctd_engine import ParallelSampler
from ctd_engine.ops._dispatch import triton_unavailable_reason
from small_problems import PROBLEMS, SHAPE, mixture, table_of

if triton_unavailable_reason() is not None:
    pytest.skip(f"no Triton: {triton_unavailable_reason()}", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

SAMPLED = [
    (PROBLEMS[0], {}, {}),
    (PROBLEMS[0], {}, {"method": "data"}),
    (PROBLEMS[2], {"clip_x0": 0.8}, {"method": "order_k"}),
    (PROBLEMS[8], {}, {"method": "order_k"}),
    (PROBLEMS[8], {}, {"method": "gaussian"}),
    (PROBLEMS[10], {}, {}),
    (PROBLEMS[13], {}, {"guess": "zero", "method": "gaussian"}),
    (PROBLEMS[13], {}, {"guess": "copy"}),
    (PROBLEMS[14], {}, {"max_rows": 7}),
]


@pytest.mark.parametrize(("one", "more", "options"), SAMPLED, ids=lambda p: str(p)[:40])
def test_sampler_gives_the_same_samples(one, more, options):
    """The same rounds, windows and samples; fp64 to 1e-12."""
    table = table_of(one, 10, **more)
    results = [
        ParallelSampler(
            mixture(table),
            shape=SHAPE,
            solver=table,
            window_size=4,
            dtype=torch.float64,
            device=DEVICE,
            backend=backend,
            **{"tolerance": 0.05, **options},
        ).sample(3, seed=1)
        for backend in ("triton", "reference")
    ]
    assert (results[0].samples - results[1].samples).abs().max() <= 1e-12
    assert results[0].stats.rounds == results[1].stats.rounds
    assert results[0].stats.evaluations == results[1].stats.evaluations


def test_sampler_with_guidance_and_explicit_noise():
    table = table_of(PROBLEMS[0], 8)
    inner = mixture(table)

    def model(x, t, shift):
        return inner(x, t) + 0.1 * shift[:, None, None]

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 2, *SHAPE, generator=generator, dtype=torch.float64)
    samples = [
        ParallelSampler(
            model,
            shape=SHAPE,
            solver=table,
            window_size=4,
            dtype=torch.float64,
            device=DEVICE,
            null_cond={"shift": torch.zeros(1, device=DEVICE)},
            backend=backend,
        )
        .sample(
            2,
            seed=1,
            noise=noise,
            cond={"shift": torch.tensor([1.0, -2.0], device=DEVICE)},
            guidance_scale=2.0,
        )
        .samples
        for backend in ("triton", "reference")
    ]
    assert (samples[0] - samples[1]).abs().max() <= 1e-12


def test_a_named_backend_that_cannot_run_lists_its_reasons():
    code = (
        "import sys, os\n"
        "os.environ.pop('TRITON_INTERPRET', None)\n"
        "if sys.argv[1] == 'hidden': sys.modules['triton'] = None\n"
        "from ctd_engine import ParallelSampler, schedules\n"
        "ParallelSampler(lambda x, t: x, shape=(2,), schedule=schedules.linear_beta(),"
        " backend='triton')\n"
    )
    for argument in ("there", "hidden"):
        done = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True, check=False
        )
        assert 'RuntimeError: backend "triton" cannot run on these inputs' in done.stderr
        assert "- the tensors are on cpu and Triton needs a CUDA device" in done.stderr
        assert "TRITON_INTERPRET=1" in done.stderr
        assert ("- triton cannot be imported" in done.stderr) == (argument == "hidden")


def transposed(values):
    """The same numbers, the elements of a row one row's length apart."""
    return values.T.contiguous().T


OUTPUTS = {
    "transposed": lambda x, w: (w @ x.T).T,
    "expanded": lambda x, w: (x @ w[0])[:, None].expand(x.shape),
    "every second element": lambda x, w: torch.stack([x @ w.T, x], 2)[:, :, 0],
}


@pytest.mark.parametrize("is_guided", [False, True])
@pytest.mark.parametrize("layout", OUTPUTS)
def test_sampler_takes_model_outputs_of_any_layout(layout, is_guided):
    """Rows whose elements do not lie side by side."""
    w = torch.linspace(-0.5, 0.5, 25, dtype=torch.float64, device=DEVICE).reshape(5, 5)
    table = table_of(PROBLEMS[0], 6)

    def model(x, t, shift):
        return OUTPUTS[layout](x + shift[:, None], w)

    samples = [
        ParallelSampler(
            model,
            shape=(5,),
            solver=table,
            window_size=3,
            dtype=torch.float64,
            device=DEVICE,
            null_cond={"shift": torch.zeros(1, device=DEVICE)},
            backend=backend,
        )
        .sample(
            2,
            seed=1,
            cond={"shift": torch.tensor([0.1, 0.2], device=DEVICE)},
            guidance_scale=2.0 if is_guided else None,
        )
        .samples
        for backend in ("triton", "reference")
    ]
    assert (samples[0] - samples[1]).abs().max() <= 1e-12


@pytest.mark.parametrize("guess", ["predicted", "copy"])
def test_sampler_takes_noise_of_any_layout(guess):
    table = table_of(PROBLEMS[0], 6)

    def noise(nodes, samples):
        seed = (nodes * 7 + samples).double()
        return transposed(torch.cos(seed[:, None] * torch.arange(1.0, 6.0, device=DEVICE)))

    samples = [
        ParallelSampler(
            lambda x, t: 0.3 * x,
            shape=(5,),
            solver=table,
            window_size=3,
            dtype=torch.float64,
            device=DEVICE,
            guess=guess,
            backend=backend,
        )
        .sample(2, seed=1, noise=noise)
        .samples
        for backend in ("triton", "reference")
    ]
    assert (samples[0] - samples[1]).abs().max() <= 1e-12
