"""One denoising loop of a pipeline, whose steps are handed out of parallel runs."""

from __future__ import annotations

import inspect
import logging
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers._calls import ModelCall, output_shape
from ctd_engine.integrations.diffusers._mix import Mix, probe, read_mix, read_weights
from ctd_engine.integrations.diffusers._path import (
    Path,
    check_callers,
    check_inputs,
    in_model_rows,
    time_divisor,
)
from ctd_engine.integrations.diffusers._places import Places
from ctd_engine.integrations.diffusers._row_model import RowModel
from ctd_engine.integrations.diffusers._step_noise import StepNoise
from ctd_engine.integrations.diffusers._stretch import cut, data_estimate, looking_back
from ctd_engine.integrations.diffusers.tables import table_as_set
from ctd_engine.result import SampleStats
from ctd_engine.sampler import ParallelSampler

__all__ = ["Loop"]

logger = logging.getLogger("ctd_engine")

# arguments of a scheduler's step that its table or its noise takes up
STEP_OPTIONS = ("eta", "use_clipped_model_output", "generator", "return_dict")


@dataclass
class Loop:
    """Stands in for a pipeline's model and its scheduler's step from `open` to `close`.

    The pipeline's own loop runs. Its model is asked nothing in it: it answers with probes that tell
    how its outputs are combined. The first step samples all of them in parallel with the arguments
    that the model was given; it and those after it return the points one by one. A step whose
    latents, conditioning or guidance are not those of the run samples the rest anew from there.

    Args:
        model, scheduler: the pipeline's.
        num_steps: steps that the loop will take, where it is known.
        options: of `ParallelSampler`.
        keep_trajectory: hand out the true latents of every step; else the last ones in every step.
        known: the row model of the last loop, whose times may be known; it is replaced in place.
    """

    model: torch.nn.Module
    scheduler: Any
    num_steps: int | None
    options: dict[str, Any]
    keep_trajectory: bool
    known: dict[str, RowModel]
    stats: list[SampleStats] = field(default_factory=list)
    _calls: list[ModelCall] = field(default_factory=list)
    _past: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _path: Path | None = None
    _index: int | None = None
    _first: int = 0
    _restless: int = 0

    def __post_init__(self) -> None:
        self._signature = inspect.signature(self.scheduler.step)
        self._places = Places(
            (self.model, "forward", self._forward),
            # a compiled call would not come by
            (self.model, "_compiled_call_impl", None),
            (self.scheduler, "step", self._step),
        )

    def open(self) -> None:
        """Take the places of the model's forward and the scheduler's step, for this thread."""
        self._places.take()

    def close(self) -> None:
        """Give the places back."""
        self._places.give_back()

    def _forward(self, *arguments: Any, **named: Any) -> Any:
        with self._places.aside():
            if self._is_over():
                # such as a callback's call after the last step
                return self.model(*arguments, **named)
            call = ModelCall.record(self.model, arguments, named)
            before = sum(other.count for other in self._calls)
            answer = probe(output_shape(self.model, call.x), before, call.x.device)
            self._calls.append(call)
        if named.get("return_dict", True):
            from diffusers.models.modeling_outputs import Transformer2DModelOutput

            return Transformer2DModelOutput(sample=answer)
        return (answer,)

    def _is_over(self) -> bool:
        path, index = self._path, self._index
        return path is not None and index is not None and index >= self._end()

    def _step(self, *arguments: Any, **named: Any) -> Any:
        with self._places.aside():
            bound = self._signature.bind(*arguments, **named)
            bound.apply_defaults()
            prev_sample = self._next(**bound.arguments)
        if not named.get("return_dict", True):
            return (prev_sample,)
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        return SchedulerOutput(prev_sample=prev_sample)

    def _next(self, model_output: Tensor, timestep: Any, sample: Tensor, **step: Any) -> Tensor:
        calls, self._calls = self._calls, []
        if not calls:
            raise RuntimeError(
                "the scheduler's step came without a call of the pipeline's model; restore(pipe) "
                "and run this pipeline sequentially"
            )
        if self._index is None:
            self._index = self._begin(timestep, sample, step)
        weights = read_weights(model_output, sum(call.count for call in calls))
        check_callers(calls, weights)
        path = self._path
        if path is None or not path.goes_on(self._index, calls, weights, sample):
            path = self._path = self._run(self._index, calls, read_mix(weights), sample)
        self._index += 1
        path.served += 1
        if hasattr(self.scheduler, "_step_index"):
            # the scheduler scales the model's input by it
            self.scheduler._step_index = self._index
        return path.point(self._index)

    def _begin(self, timestep: Any, sample: Tensor, step: dict[str, Any]) -> int:
        """What holds for the whole loop; the index of its first step."""
        usual = self._signature.parameters
        for name, value in step.items():
            default = usual[name].default
            is_usual = value is default or (not isinstance(value, Tensor) and value == default)
            if name not in STEP_OPTIONS and not is_usual:
                raise ValueError(
                    f"{type(self.scheduler).__name__}.step was given {name}, which has no place "
                    "in a parallel run; leave it out, or restore(pipe)"
                )
        index = getattr(self.scheduler, "begin_index", None)
        timesteps = self.scheduler.timesteps.cpu()
        if index is None:
            index = int((timesteps == float(timestep)).nonzero()[0])
        as_set = copy(self.scheduler)
        as_set.timesteps = timesteps
        taken = ("eta", "use_clipped_model_output")
        self._table: SolverTable = table_as_set(
            as_set, **{name: step[name] for name in taken if step.get(name)}
        )
        if self._table.rule is not None and self._table.rule.variance is not None:
            raise ValueError(
                f"variance_type {self._table.rule.variance!r} takes the noise's size from the "
                'model, which parallelize cannot do; use "fixed_small", or the sampler function'
            )
        self._options = {k: v for k, v in step.items() if k in STEP_OPTIONS}
        self._noise: StepNoise | None = None
        self._first = int(index)
        return self._first

    def _run(self, first: int, calls: list[ModelCall], mix: Mix, sample: Tensor) -> Path:
        """Sample all steps from `first` on in parallel."""
        table, before = self._table, self._path
        last = self._last(first)
        if before is not None:
            self._remember(before, first)
        if table.is_stochastic and self._noise is None:
            self._noise = StepNoise(self.scheduler, first, sample, mix.first, self._options)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        start = sample[mix.first.to(sample.device)].to(dtype)
        check_inputs(calls, mix, float(table.input_scale[first]) * start)
        divisor = time_divisor(calls[0], float(table.model_time[first]))
        sampler = ParallelSampler(
            self._row_model(calls, mix, divisor),
            shape=start.shape[1:],
            solver=cut(table, first, last, adds_noise=self._adds_noise(first)),
            dtype=dtype,
            model_dtype=calls[0].x.dtype,
            device=start.device,
            **self.options,
        )
        result = sampler.sample(
            mix.num_samples,
            # no seed would draw one from the global generator
            seed=0,
            x_init=start,
            noise=self._given_noise(first, last, start),
            cond={"rows": torch.arange(mix.num_samples)},
            keep_trajectory=self.keep_trajectory,
        )
        self.stats.append(in_model_rows(result.stats, mix.rows.shape[1]))
        points = result.samples[:, None]
        if result.trajectory is not None:
            points = torch.cat([result.trajectory[:, :-1], points], dim=1)
        return Path(first, last, calls, mix, divisor, points, sample.dtype)

    def _last(self, first: int) -> int:
        """The node at which a run from `first` ends."""
        path = self._path
        if path is not None:
            if not self.keep_trajectory:
                raise ValueError(
                    "the latents, the conditioning or the guidance changed in the middle, which "
                    "needs the latents of every step: parallelize(pipe, keep_trajectory=True)"
                )
            if first < path.last:
                logger.warning(
                    "latents, conditioning or guidance changed before step %d: the steps from "
                    "there on are sampled again",
                    first,
                )
            self._restless = self._restless + 1 if path.served == 1 else 0
        if self._restless >= 2:
            # what changes in every step is not worth looking ahead
            return first + 1
        end = self._end()
        return end if end > first else self._table.num_nodes

    def _end(self) -> int:
        """The node at which the pipeline's loop is expected to end."""
        all_steps = self._table.num_nodes
        expected = all_steps if self.num_steps is None else self._first + self.num_steps
        return min(expected, all_steps)

    def _row_model(self, calls: list[ModelCall], mix: Mix, divisor: float) -> RowModel:
        # one object for all calls of a form: times are known by it
        new = RowModel(self.model, calls, mix, divisor)
        known = self.known.get("model")
        if known is not None and known.form == new.form:
            known.load(calls, mix, divisor)
            return known
        self.known["model"] = new
        return new

    def _adds_noise(self, first: int) -> bool:
        has_past = self._table.order > 1 and first > 0
        return self._noise is not None or has_past

    def _given_noise(self, first: int, last: int, start: Tensor) -> Tensor | None:
        if not self._adds_noise(first):
            return None
        noise = start.new_zeros(last - first, *start.shape)
        if self._noise is not None:
            noise += self._noise.until(first, last)
        if first > 0:
            back = looking_back(self._table, first, self._past, start)[: last - first]
            noise[: len(back)] += back
        return noise

    def _remember(self, path: Path, first: int) -> None:
        """x and x0 of the nodes before `first` that multistep solvers look back on."""
        model = RowModel(self.model, path.calls, path.mix, path.divisor)
        for node in range(max(path.first, first - self._table.order + 1), first):
            x = path.points[:, node - path.first]
            rows = torch.arange(len(x), device=x.device)
            time = torch.full((len(x),), float(self._table.model_time[node]), device=x.device)
            scaled = (float(self._table.input_scale[node]) * x).to(path.calls[0].x.dtype)
            flat = x.flatten(1)
            m = model(scaled, time.to(x.dtype), rows).flatten(1)
            x0 = data_estimate(self._table, node, flat, m)
            self._past[node] = (x, x0.view(x.shape))
