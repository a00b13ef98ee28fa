"""ParallelSampler and its oracle, SequentialSampler: validate, build, loop, result."""

from __future__ import annotations

import time as _time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ctd_engine import _checks
from ctd_engine._alike import Given
from ctd_engine._auto_window import follow
from ctd_engine._coefficients import METHODS
from ctd_engine._graphs import GraphSwitch
from ctd_engine._over_ranks import OverRanks, Way
from ctd_engine._planner import Planner
from ctd_engine._request import Request, SamplerBase, on_device
from ctd_engine._resident_run import KeptRounds, can_be_resident, run_resident
from ctd_engine._rounds import run_rounds
from ctd_engine._run_settings import (
    Outcome,
    RoundSettings,
    checked_stride,
    checked_window,
    make_result,
)
from ctd_engine._sequential import SequentialSampler
from ctd_engine._trajectory import GUESSES
from ctd_engine.denoiser import Model
from ctd_engine.ops._dispatch import resolve
from ctd_engine.result import Callback, RoundProgress, SampleResult
from ctd_engine.schedules import Grid, Schedule
from ctd_engine.scheduling.sizes import ratio_of
from ctd_engine.solvers import SolverTable
from ctd_engine.window_plan import WindowPlan

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ParallelSampler", "RoundProgress", "SequentialSampler"]


class ParallelSampler(SamplerBase):
    """Sample a diffusion model parallel in time, by Picard iteration over sliding windows.

    Every round evaluates the model on a window of each sample's trajectory in one batch, corrects
    all points at once, and moves each window to its first point that still changes (Shih et al.
    2023, arXiv 2305.16317, Alg. 1, with predicted first guesses and one window per sample). At
    tolerance 0 the result is the sequential sampler's, in at most `num_nodes` rounds.

    Args:
        model: `model(x [R, *shape], t [R], **cond) -> [R, *shape]`; rows must be independent.
        shape: shape of one sample, without the batch.
        schedule: noise schedule, from `ctd_engine.schedules`.
        solver: a name from `ctd_engine.solvers`, or a `SolverTable`, which then also carries
            num_steps, prediction, time and clip_x0.
        num_steps: solver steps N, or the nodes themselves, a `schedules.Grid`.
        prediction: what the model returns: "epsilon", "x0", "v", "flow" or "edm".
        time: the model's time input: None (the schedule's own), "timestep", "index" (the nearest
            whole timestep, as a float), "logsnr", "sigma", "c_noise" or "flow".
        clip_x0: clip the data prediction to [-clip_x0, clip_x0]; None does not clip.
        window_size: points per window; "auto" measures the model, predicts the fastest window (see
            `plan`) and lets each sample's window follow its own advance. Times differ from run to
            run and with them the windows and, within the tolerance, the samples.
        tolerance: a point is accepted when its root mean squared change is at most `tolerance`
            times the standard deviation of the noise that the step from it adds.
        adaptive_window: length of a sample's window over the smoothed advance of its last rounds,
            such as 2.0; `window_size`, which then is a number, is the most. It saves evaluations
            and costs rounds (`docs/methods.md`). None keeps windows whole.
        far_stride: ask the model, in the far part of a window, at every `far_stride`-th point only,
            and let x0 of the others lie between: up to half of the evaluations less, for about the
            same rounds. Far is what moved more than ten times what it is accepted with. 1 asks at
            every point (`docs/methods.md`). "auto" windows are planned as if it were 1.
        method: slope of the update: "picard", "order_k", "data", "gaussian" or "secant", which
            measures it and holds half as much state again; `docs/methods.md` says which pays where.
        guess: of new window points: "predicted" (x0 held, true noise; the first round evaluates one
            point), "zero" (the same, beginning with x0 = 0 in place of that round), "prior"
            (beginning with the solver's own path for data N(0, I)) or "copy"
            (ParaDiGMS).
        max_rows: rows of one model batch, shared fairly among the samples; over ranks, of all their
            batches together.
        max_rounds: rounds that one sample may take; None is the number of nodes, always enough.
        lockstep: all samples share one window, as in ParaDiGMS; a baseline, never faster.
        null_cond: the model's keyword arguments for "no condition", for guidance.
        dtype: float32 or float64, of states and step mathematics.
        model_dtype: dtype of the model's input; None is `dtype`. Times stay in `dtype`.
        device: where states live and the model runs.
        backend: None (Triton on a CUDA device, C++ on the CPU, else the reference), "reference",
            "cpp" or "triton".
        scheduler_backend: where windows are scheduled: None ("cuda" where it can run, else the
            extension, or its Python twin), "cuda" (beside the model, no round waits for the host),
            "cpp" or "python".
        cuda_graphs: record the rounds on a CUDA device, with the model in them, and replay them. A
            model whose calls do more than launch kernels, such as one that caches or counts in
            Python, needs False. Recordings of a `torch.nn.Module` serve later calls too, as long
            as its weights stay where they are and its plain attributes are the same objects.
        solver_options: further arguments of the solver, such as {"eta": 1.0}.
        process_group: share the work with the other ranks of a `torch.distributed` group, each with
            its own replica of the model: a group, or one dimension of a `DeviceMesh` such as
            `mesh["rows"]`, with the model sharded along another. Every rank makes the same sampler,
            calls `sample` alike and gets all samples; see `docs/scaling.md`.
        split: what ranks share: "rows" of every round (rounds are then scheduled on the host and
            not recorded), whole "samples" (each rank runs its own as if alone and they are gathered
            at the end), or "auto", whichever is predicted to cost less.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        model: Model,
        *,
        shape: Sequence[int],
        schedule: Schedule | None = None,
        solver: str | SolverTable = "ddpm",
        num_steps: int | Grid = 1000,
        prediction: str = "epsilon",
        time: str | None = None,
        clip_x0: float | None = None,
        window_size: int | str = "auto",
        adaptive_window: float | None = None,
        far_stride: int = 1,
        tolerance: float = 0.1,
        method: str = "picard",
        guess: str = "predicted",
        max_rows: int = 256,
        max_rounds: int | None = None,
        lockstep: bool = False,
        null_cond: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        scheduler_backend: str | None = None,
        cuda_graphs: bool = True,
        solver_options: Mapping[str, Any] | None = None,
        process_group: ProcessGroup | DeviceMesh | None = None,
        split: str = "auto",
    ) -> None:
        super().__init__(
            model,
            shape=shape,
            schedule=schedule,
            solver=solver,
            num_steps=num_steps,
            prediction=prediction,
            time=time,
            clip_x0=clip_x0,
            null_cond=null_cond,
            dtype=dtype,
            model_dtype=model_dtype,
            device=device,
            solver_options=solver_options,
        )
        _checks.require_choice("method", method, METHODS)
        _checks.require_choice("guess", guess, GUESSES)
        resolve(backend, torch.empty(0, device=self.device), has_cpp=True)
        nodes = self.table.num_nodes
        max_rounds = nodes if max_rounds is None else max_rounds
        window_size = checked_window(window_size, nodes, adaptive_window, lockstep)
        self.window_size = window_size
        self._settings = RoundSettings(
            table=self.table,
            window_size=1 if isinstance(window_size, str) else window_size,
            first_window=1 if isinstance(window_size, str) else window_size,
            window_ratio=0 if adaptive_window is None else ratio_of(adaptive_window),
            far_stride=checked_stride(far_stride, self.table),
            tolerance=_checks.require_float("tolerance", tolerance, minimum=0.0),
            method=method,
            guess=guess,
            max_rows=_checks.require_int("max_rows", max_rows, minimum=1),
            max_rounds=_checks.require_int("max_rounds", max_rounds, minimum=1),
            lockstep=bool(lockstep),
            dtype=self.dtype,
            model_dtype=self.model_dtype,
            device=self.device,
            backend=backend,
            scheduler_backend=scheduler_backend,
            graphs=GraphSwitch(bool(cuda_graphs)),
        )
        self._is_resident = can_be_resident(self._settings)
        if not self._is_resident:
            # rounds that wait for the host cannot be recorded
            self._settings = replace(self._settings, graphs=GraphSwitch(False))
        self._shared = (
            None
            if process_group is None
            else OverRanks(process_group, split, self._settings, window_size)
        )
        self._kept = KeptRounds()
        self._alone = Way(self._settings, self._is_resident, is_apart=True)
        self._planner = Planner(self.model, self._alone, self._shared)

    def sample(
        self,
        num_samples: int = 1,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        x_init: torch.Tensor | None = None,
        noise: torch.Tensor | Callable[..., torch.Tensor] | None = None,
        cond: Mapping[str, Any] | None = None,
        guidance_scale: float | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        keep_trajectory: bool = False,
        x_trajectory: torch.Tensor | None = None,
    ) -> SampleResult:
        """Draw samples.

        Args:
            num_samples: B.
            seed: one integer for the whole call; sample b gets its own seed derived from (seed, b).
            seeds: B integers in [0, 2**64), one per sample, instead of `seed`. Equal seeds give
                equal noise, whatever else is in the batch, and equal samples up to the tolerance:
                others in the batch take a share of `max_rows`, which changes the windows. With
                neither, torch's global generator supplies a seed.
            x_init: x_0 [B, *shape], instead of initial noise from the seeds.
            noise: z [num_nodes, B, *shape], or a callable `noise(nodes [R], samples [R]) ->
                [R, *shape]`, instead of the noise of the steps from the seeds.
            cond: keyword arguments of the model; tensors have one row per sample and are taken to
                the sampler's device.
            guidance_scale: classifier-free guidance, needs `null_cond`; 1 or None is off.
            progress: show a progress bar of finished trajectory points.
            callback: called with a `RoundProgress` after every round; returning True cancels. With
                `keep_trajectory` it can read the points that are final.
            keep_trajectory: return all points as `trajectory`, memory that grows with num_steps.
            x_trajectory: a similar trajectory [B, num_nodes + 1, *shape] to begin with in the place
                of `guess`, such as `trajectory` of a call with the same seeds and a slightly other
                prompt. The result is that without it within the tolerance, whatever is given. A
                network of digits took 3 rounds in place of 7 when x_init had moved by 5 %
                (DDIM-25), but noise of other steps makes it slower; see `docs/methods.md`.

        Returns:
            Samples, statistics and a `StopReason` per sample. Numerical failure is a reason, not
            an exception: a diverged sample is NaN and the others are not touched.
        """
        begin = _time.perf_counter()
        given = (num_samples, seed, seeds, x_init, noise, cond, guidance_scale)
        request, is_heard = self._agreed(given, keep_trajectory, callback is not None)
        with torch.inference_mode(), on_device(self.device):
            way, chosen = self._way(request, is_heard)
            settings = replace(
                way.settings if chosen is None else follow(way.settings, chosen),
                keep_trajectory=bool(keep_trajectory),
                tells_points=bool(keep_trajectory) and callback is not None,
            )
            if x_trajectory is not None:
                request = self._warm(request, x_trajectory)
                settings = replace(settings, is_warm=True)
            if self._shared is None:
                outcome = self._run(request, settings, self._kept, progress, callback)
            elif way.is_apart:
                outcome = self._shared.run_apart(
                    request, settings, lambda r: self._run(r, settings, self._kept, progress, None)
                )
            else:
                outcome = self._shared.run_together(request, settings, progress, callback, is_heard)
        if chosen is not None:
            self._planner.learn(outcome.history)
        return make_result(request, outcome, _time.perf_counter() - begin, chosen)

    def _warm(self, request: Request, x_trajectory: torch.Tensor) -> Request:
        # the request with a trajectory that it follows
        if self._shared is not None:
            raise ValueError("x_trajectory is not shared among ranks: leave process_group out")
        expected = (request.num_samples, self.table.num_nodes + 1, *self.shape)
        axes = "(num_samples, num_nodes + 1, *shape)"
        given = self._tensor("x_trajectory", x_trajectory, expected, axes)
        return replace(request, trajectory=given.flatten(2))

    def _agreed(self, given: Given, keeps: bool, has_callback: bool) -> tuple[Request, bool]:
        # the request, on all ranks, and whether anybody hears of its rounds
        if self._shared is None:
            return self._request(*given), has_callback
        with on_device(self.device):
            return self._shared.request(self._request, given, keeps, has_callback)

    def _run(
        self,
        request: Request,
        settings: RoundSettings,
        kept: KeptRounds,
        progress: bool,
        callback: Callback | None,
    ) -> Outcome:
        if self._is_resident:
            return run_resident(request, settings, kept, progress=progress, callback=callback)
        return run_rounds(request, settings, progress=progress, callback=callback)

    def _probe(self, request: Request, settings: RoundSettings, callback: Callback) -> Outcome:
        # buffers of a measurement are not kept for samples
        return self._run(request, settings, KeptRounds(), False, callback)

    def plan(
        self,
        num_samples: int = 1,
        *,
        cond: Mapping[str, Any] | None = None,
        guidance_scale: float | None = None,
    ) -> WindowPlan:
        """Predict what every window size costs for `num_samples`; `print` shows it as a table.

        The model is timed with the given conditioning the first time, at powers of two of rows up
        to `max_rows`, fewer once time grows with the rows. How far a window moves in a round is
        read off this sampler's last run, before the first one it is a rule of thumb.
        """
        given = (num_samples, 0, None, None, None, cond, guidance_scale)
        request, _ = self._agreed(given, False, False)
        with torch.inference_mode(), on_device(self.device):
            return self._planner.plan(request, self._probe, False)[1]

    def _way(self, request: Request, is_heard: bool) -> tuple[Way, WindowPlan | None]:
        if self.window_size == "auto":
            return self._planner.plan(request, self._probe, is_heard)
        alone = self._alone
        return (alone if self._shared is None else self._shared.way(request, alone, is_heard)), None
