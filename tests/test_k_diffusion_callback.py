"""k-diffusion's callback: the loop's steps in order, while the run goes on."""

from __future__ import annotations

import pytest
import torch

from ctd_engine.integrations.k_diffusion import sample_parallel
from k_diffusion_loops import (
    CASES,
    F32,
    F64,
    IDS,
    LIMIT,
    Noise,
    case_id,
    denoise,
    difference,
    karras,
    run,
    start,
)


class Told:
    """A callback, for the loop and for ours."""

    def __init__(self):
        self.steps = []

    def __call__(self, told):
        self.steps.append(told)

    def of_the_loop(self, x, i, sigma, sigma_hat):
        denoised = denoise(x, sigma_hat.expand(len(x)))
        self({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma_hat, "denoised": denoised})


@pytest.mark.parametrize("name, loop, options", CASES, ids=IDS)
def test_callback_is_the_loops(name, loop, options):
    """Once per step, in order, with the loop's states and denoised samples."""
    # the other precision for every other case
    dtype = F64 if IDS.index(case_id(name, options)) % 2 == 0 else F32
    sigmas, theirs, ours = karras(7).to(dtype), Told(), Told()
    loop(start(dtype), sigmas.double(), Noise(dtype), theirs.of_the_loop, **options)
    sample_parallel(
        denoise,
        start(dtype),
        sigmas,
        callback=ours,
        disable=True,
        solver=name,
        noise_sampler=Noise(dtype),
        tolerance=0.0,
        window_size=4,
        max_rows=7,
        **options,
    )
    assert [told["i"] for told in ours.steps] == list(range(7))
    for told, expected in zip(ours.steps, theirs.steps, strict=True):
        assert told.keys() == {"x", "i", "sigma", "sigma_hat", "denoised"}
        for key in ("x", "denoised"):
            assert told[key].dtype == dtype
            assert difference(told[key], expected[key]) <= LIMIT[dtype]
        assert torch.equal(told["sigma"], sigmas[told["i"]])
        torch.testing.assert_close(told["sigma_hat"], expected["sigma_hat"].to(dtype))


def test_callback_comes_while_the_run_goes_on():
    calls, at = [], []

    def model(x, sigma):
        calls.append(len(x))
        return denoise(x, sigma)

    got = sample_parallel(
        model,
        start(),
        karras(40),
        callback=lambda told: at.append((told["i"], len(calls))),
        disable=True,
        window_size=8,
        solver="dpmpp_2m",
    )
    assert [i for i, _ in at] == list(range(40))
    assert at[0][1] == 1
    assert len({rounds for _, rounds in at}) > 4
    assert at[-1][1] == len(calls) < 40
    # nothing of the sampler's inference mode is left on the result
    weight = torch.ones((), dtype=F64, requires_grad=True)
    (weight * got).sum().backward()
    assert torch.equal(weight.grad, got.sum())


def test_callback_may_use_gradients_and_stop_by_raising():
    weight = torch.ones((), dtype=F64, requires_grad=True)

    def callback(told):
        with torch.enable_grad():
            (weight * told["denoised"]).sum().backward()
        if told["i"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callback=callback)
    assert weight.grad is not None
