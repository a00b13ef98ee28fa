"""The state of a parallel sampling run: a ring of window points for every slot."""

from __future__ import annotations

import torch

from ctd_engine._coefficients import (
    bound_rule,
    copying,
    data_rule,
    given_x0,
    prior,
    ruled,
    solver_coefficients,
    thresholds,
)
from ctd_engine._far_points import NEAR, FarPoints
from ctd_engine._output_rule import BoundRule
from ctd_engine._warm_start import added_by_steps, following
from ctd_engine._window_noise import of_guess, of_windows
from ctd_engine._windows import to_tensors
from ctd_engine.noise import NoiseSource
from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import Windows, picard_update_
from ctd_engine.ops.predict_guess import predict_guess_
from ctd_engine.ops.record_points import record_points_
from ctd_engine.ops.secant_slopes import secant_slopes
from ctd_engine.ops.trajectory_error import trajectory_error
from ctd_engine.scheduling import RoundPlan
from ctd_engine.solvers import SolverTable

__all__ = ["GUESSES", "TrajectoryStore"]

GUESSES = ("predicted", "zero", "prior", "copy")


class TrajectoryStore:
    """States x and data predictions x0 of the window points, `[slot, ring, D]`.

    Node i of a slot's sample lies at ring position i mod R with R = window_size + K, enough for a
    window's points and the history that the solver looks back on. Nothing grows with N.
    """

    def __init__(
        self,
        table: SolverTable,
        *,
        num_slots: int,
        window_size: int,
        num_elements: int,
        method: str,
        guess: str,
        tolerance: float,
        noise: NoiseSource,
        dtype: torch.dtype,
        device: torch.device,
        backend: str | None,
        num_recorded: int = 0,
        records_x0: bool = False,
        similar: torch.Tensor | None = None,
        is_published: bool = False,
        has_far_points: bool = False,
    ) -> None:
        ring = window_size + table.order
        self.x = torch.zeros(num_slots, ring, num_elements, dtype=dtype, device=device)
        self.x0 = torch.zeros_like(self.x)
        # how far each point has moved since its last evaluation
        self.change = torch.zeros_like(self.x) if method == "secant" else None
        # the last state of every node, [B, N + 1, D]; node 0 collects what is no point
        self.record = self.x.new_full((num_recorded, table.num_nodes + 1, num_elements), torch.nan)
        # and its last data prediction; here node N collects what is none
        self.record_x0 = torch.full_like(
            self.record[: num_recorded if records_x0 else 0], torch.nan
        )
        self.num_nodes = table.num_nodes
        self.is_stochastic = table.is_stochastic
        self.coefficients = solver_coefficients(table, method, dtype, device)
        self.guesses_noise = guess != "copy" and self.is_stochastic
        self.similar = similar
        self.guess_coefficients = self.coefficients
        if similar is not None:
            self.guess_coefficients = following(self.coefficients)
        elif guess == "copy":
            self.guess_coefficients = copying(self.coefficients)
        # of a sample's first window, where it is another one
        self.first_coefficients = None
        if guess == "prior" and similar is None:
            self.first_coefficients = prior(table, self.coefficients)
        self.rule = bound_rule(table, dtype, device)
        if self.rule is not None:
            self.coefficients = ruled(self.coefficients)
        # of rounds whose rows are fewer than their points
        self._far_rule = data_rule(table, dtype, device)
        self._far_coefficients = given_x0(self.coefficients)
        self._noise_scale = table.C.to(device=device, dtype=dtype)
        self.input_scale = table.input_scale.to(device=device, dtype=dtype)
        # at least fp32: timesteps above 256 are not exact in bf16
        self.model_time = table.model_time.to(device=device, dtype=dtype)
        judged = thresholds(table, tolerance, is_published=is_published)
        self.threshold = judged.to(device=device, dtype=dtype)
        # of points that are about to be accepted
        self._near_threshold = NEAR**2 * self.threshold if has_far_points else None
        self.noise = noise
        self.backend = backend

    @property
    def state_bytes(self) -> int:
        """Bytes held for the whole run."""
        rings = (self.x, self.x0) if self.change is None else (self.x, self.x0, self.change)
        return sum(ring.numel() * ring.element_size() for ring in rings)

    def trajectory(self, starts: torch.Tensor) -> torch.Tensor:
        """A copy of the recorded points [B, N + 1, D]; NaN where no window has been."""
        return torch.cat([starts[:, None], self.record[:, 1:]], dim=1)

    def recorded(self, node: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The recorded x and x0 of a node, [B, D], to be read before the next round."""
        return self.record[:, node], self.record_x0[:, node]

    def clear_record(self) -> None:
        """Forget the recorded points of another request."""
        self.record.fill_(torch.nan)
        self.record_x0.fill_(torch.nan)

    def _keep(self, windows: Windows, sample: torch.Tensor) -> None:
        # a node is written until it is accepted, so that its last value is the accepted one
        w, most, backend = windows, windows.max_length, self.backend
        updated = w.start + 1, w.length, most
        record_points_(self.record, self.x, w.slot, sample, *updated, spare=0, backend=backend)
        if len(self.record_x0) > 0:
            evaluated, spare = (w.start, w.length, most), self.num_nodes
            record_points_(
                self.record_x0, self.x0, w.slot, sample, *evaluated, spare=spare, backend=backend
            )

    def admit(self, slot: int, x_initial: torch.Tensor) -> None:
        """Start a sample in a slot; what its predecessor left is never read."""
        self.x[slot, 0] = x_initial

    def guess(self, plan: RoundPlan) -> None:
        """Fill the points of the plan's windows that hold nothing yet."""
        count = plan.start + plan.length - plan.known
        most = int(count.max())
        if most <= 0:
            return
        columns = [plan.slot, plan.sample, plan.known, count]
        if len(count) > 1:
            is_open = count > 0
            columns = [values[is_open] for values in columns]
        slot, sample, known, counts = to_tensors(columns, self.x.device)
        self.fill(slot, sample, known, counts, most)

    def fill(
        self,
        slot: torch.Tensor,
        sample: torch.Tensor,
        known: torch.Tensor,
        count: torch.Tensor,
        max_count: int,
    ) -> None:
        """First values of nodes known + 1 .. known + count of slots [A]; nothing waits."""
        parts = [(count, self.guess_coefficients)]
        if self.first_coefficients is not None:
            is_first = known == 0
            parts = [
                (count.where(is_first, 0), self.first_coefficients),
                (count.where(~is_first, 0), self.guess_coefficients),
            ]
        noise = self._guess_noise(sample, known, max_count)
        for counts, coefficients in parts:
            predict_guess_(
                self.x,
                self.x0,
                slot,
                known,
                counts,
                max_count,
                coefficients,
                **noise,
                backend=self.backend,
            )

    def _guess_noise(
        self, sample: torch.Tensor, first: torch.Tensor, max_count: int
    ) -> dict[str, torch.Tensor]:
        if self.similar is not None:
            a = self.guess_coefficients.A
            return {"z": added_by_steps(self.similar, a, sample, first, max_count)}
        if not self.guesses_noise:
            return {}
        dtype = self.x.dtype
        return of_guess(self.noise, sample, first, max_count, self.num_nodes, dtype)

    def _step_noise(
        self, windows: Windows, sample: torch.Tensor, point_sample: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        if not self.is_stochastic:
            return {}
        return of_windows(self.noise, windows, sample, point_sample, self.x.dtype)

    def model_rows(
        self, slot: torch.Tensor, node: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled model inputs [rows, D] and model times [rows] of nodes [rows] of slots [rows]."""
        return gather_rows(
            self.x,
            slot,
            node,
            self.input_scale,
            self.model_time,
            dtype,
            backend=self.backend,
        )

    def update(
        self,
        windows: Windows,
        sample: torch.Tensor,
        point_sample: torch.Tensor,
        m: torch.Tensor,
        m_null: torch.Tensor | None,
        guidance_scale: float,
        far: FarPoints | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """One Picard iteration from the model's outputs, of all points or of the rows of `far`.

        Returns:
            How far each window advances, how much of it is finite and, with `far_stride` > 1, how
            much of it moved little.
        """
        coefficients = self.coefficients
        if far is not None:
            m, noise = self._spread(far, windows, sample, point_sample, m, m_null, guidance_scale)
            m_null = None
            if self.rule is None:
                coefficients = self._far_coefficients
        elif self.rule is None:
            noise = self._step_noise(windows, sample, point_sample)
        else:
            m, added = self._apply(self.rule, windows, point_sample, m, m_null, guidance_scale)
            noise, m_null = {} if added is None else {"z": added}, None
        slopes = None
        if self.change is not None:
            slopes = secant_slopes(
                self.x,
                self.x0,
                self.change,
                m,
                windows,
                coefficients,
                m_null=m_null,
                guidance_scale=guidance_scale,
                backend=self.backend,
            )
        partials = picard_update_(
            self.x,
            self.x0,
            m,
            windows,
            coefficients,
            **noise,
            m_null=m_null,
            guidance_scale=guidance_scale,
            slopes=slopes,
            change=self.change,
            backend=self.backend,
        )
        if len(self.record) > 0:
            self._keep(windows, sample)
        accepted, finite = self._moved(partials, windows, self.threshold)
        if self._near_threshold is None:
            return accepted, finite, None
        return accepted, finite, self._moved(partials, windows, self._near_threshold)[0]

    def _moved(
        self, partials: torch.Tensor, windows: Windows, threshold: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return trajectory_error(
            partials,
            self.x.shape[2],
            threshold,
            windows.start,
            windows.length,
            backend=self.backend,
        )

    def _spread(
        self,
        far: FarPoints,
        windows: Windows,
        sample: torch.Tensor,
        point_sample: torch.Tensor,
        m: torch.Tensor,
        m_null: torch.Tensor | None,
        guidance_scale: float,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        # x0 of every point from that of the rows, and what the steps add
        x = self.x[far.slot, far.node % self.x.shape[1]]
        x0, rest = self._far_rule(x, m, m_null, guidance_scale, far.node, None)
        x0 = far.between(x0)
        if self.rule is None:
            return x0, self._step_noise(windows, sample, point_sample)
        added = None if rest is None else far.between(rest)
        if self.is_stochastic:
            node = windows.row_node
            z = self.noise.step(node, point_sample, self.x.dtype)
            z = self._noise_scale[node][:, None] * z
            added = z if added is None else z + added
        return x0, {} if added is None else {"z": added}

    def _apply(
        self,
        rule: BoundRule,
        windows: Windows,
        point_sample: torch.Tensor,
        m: torch.Tensor,
        m_null: torch.Tensor | None,
        guidance_scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # rows of padding hold numbers of no meaning, which the update leaves alone
        node = windows.row_node
        x = self.x[windows.row_slot, node % self.x.shape[1]]
        z = self.noise.step(node, point_sample, self.x.dtype) if self.is_stochastic else None
        return rule(x, m, m_null, guidance_scale, node, z)

    def state(self, slot: int, node: int) -> torch.Tensor:
        """x at a node that the ring holds, [D]."""
        return self.x[slot, node % self.x.shape[1]]

    def data_estimate(self, slot: int, node: int) -> torch.Tensor:
        """The x0 estimate of the last time that a node was evaluated, [D]."""
        return self.x0[slot, node % self.x.shape[1]]
