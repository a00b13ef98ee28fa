"""What a step makes of the model's output where that is no linear map of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctd_engine import _checks

__all__ = ["BoundRule", "OutputRule"]

VARIANCES = ("learned", "learned_range", "unused")


@dataclass(frozen=True, eq=False)
class OutputRule:
    """Parts of a step that are not linear in the model's output; an option of `SolverTable`.

    With x0~_i = P_i x_i + Q_i m_i as ever, a step is

        x0_i    = bounded(x0~_i)
        x_{i+1} = sum_k A_x0[i,k] x_{i-k} + sum_k B_x0[i,k] x0_{i-k} + R[i] (x0~_i - x0_i) + s_i z_i

    where s_i is C[i], or what the model says. So all the rest of a sampler stays linear.

    Args:
        clip: x0 = x0~ clipped to [-clip, clip].
        quantile, max_value: dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section
            2.3): s is this quantile of |x0~| over a sample, clipped to [1, max_value], and
            x0 = clip(x0~, -s, s) / s. Excludes `clip`.
        remainder: R [N], for solvers that go on with the noise of the unbounded x0~; needs a bound.
        variance: the model returns twice the channels and its second half v is about the variance:
            "learned": s_i = sqrt(v); "learned_range": log s_i runs from log low_i at v = -1 to
            log high_i at v = 1 (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15); "unused": s_i
            is C[i] all the same. Where C[i] is 0 nothing is added. Guidance combines the first half
            alone and takes v from the conditional output.
        low, high: standard deviations [N], of "learned_range" only.

    Raises:
        ValueError: parts that exclude each other, or are out of range.
    """

    clip: float | None = None
    quantile: float | None = None
    max_value: float = 1.0
    remainder: Tensor | None = None
    variance: str | None = None
    low: Tensor | None = None
    high: Tensor | None = None

    def __post_init__(self) -> None:
        if self.clip is not None:
            _checks.require_float("clip", self.clip, above=0.0)
        if self.quantile is not None:
            if self.clip is not None:
                raise ValueError("give either clip or quantile, not both: each bounds x0")
            if _checks.require_float("quantile", self.quantile, above=0.0) > 1.0:
                raise ValueError(f"quantile must be in (0, 1], got {self.quantile:g}")
            _checks.require_float("max_value", self.max_value, minimum=1.0)
        elif self.max_value != 1.0:
            raise ValueError(
                f"max_value bounds the threshold of quantile: give both, got {self.max_value} alone"
            )
        if self.remainder is not None and self.clip is None and self.quantile is None:
            raise ValueError(
                "remainder is of what a bound takes from x0: give clip or quantile too, got neither"
            )
        if self.variance is not None:
            _checks.require_choice("variance", self.variance, VARIANCES)
        is_range = self.variance == "learned_range"
        if is_range != (self.low is not None) or is_range != (self.high is not None):
            given = [name for name in ("low", "high") if getattr(self, name) is not None]
            raise ValueError(
                'low and high belong to variance "learned_range", and both of them, got variance '
                f"{self.variance!r} with {' and '.join(given) or 'neither'}"
            )

    @property
    def outputs(self) -> int:
        """Numbers that the model returns for every element of its input: 2 with a variance."""
        return 1 if self.variance is None else 2

    def check(self, num_nodes: int) -> None:
        """Raise ValueError unless every vector has one finite float64 number per node."""
        for name in ("remainder", "low", "high"):
            value = getattr(self, name)
            if value is None:
                continue
            is_tensor = isinstance(value, Tensor)
            if not is_tensor or value.shape != (num_nodes,) or value.dtype != torch.float64:
                got = f"{value.dtype} of shape {tuple(value.shape)}" if is_tensor else type(value)
                raise ValueError(
                    f"rule.{name} must be a float64 tensor of shape {(num_nodes,)}, got {got}"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"rule.{name} must be finite, it holds NaN or infinity")
            if name != "remainder" and bool((value <= 0).any()):
                raise ValueError(f"rule.{name} must be positive: it is a standard deviation")


class BoundRule:
    """A rule with its table's numbers in a sampler's dtype and on its device; nothing waits."""

    def __init__(
        self,
        rule: OutputRule,
        p: Tensor,
        q: Tensor,
        c: Tensor,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def cast(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device=device, dtype=dtype)[:, None]

        self._rule = rule
        self._p, self._q, self._c = (values[:, None].to(device, dtype) for values in (p, q, c))
        self._remainder = cast(rule.remainder)
        self._low = cast(None if rule.low is None else rule.low.log())
        self._high = cast(None if rule.high is None else rule.high.log())

    def __call__(
        self,
        x: Tensor,
        m: Tensor,
        m_null: Tensor | None,
        guidance_scale: float,
        node: Tensor,
        z: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """x0 [R, D], and all that the step adds to the linear part [R, D].

        x [R, D] states, m and m_null [R, D or 2 D] raw outputs, node [R], z [R, D] the noise.
        """
        size = x.shape[1]
        mean = m[:, :size].to(x.dtype)
        if m_null is not None:
            null = m_null[:, :size].to(x.dtype)
            mean = null + guidance_scale * (mean - null)
        raw = self._p[node] * x + self._q[node] * mean
        x0 = self._bounded(raw)
        added = None if z is None else self._scale(m[:, size:].to(x.dtype), node) * z
        if self._remainder is not None:
            rest = self._remainder[node] * (raw - x0)
            added = rest if added is None else added + rest
        return x0, added

    def _bounded(self, raw: Tensor) -> Tensor:
        rule = self._rule
        if rule.clip is not None:
            return raw.clamp(-rule.clip, rule.clip)
        if rule.quantile is None:
            return raw
        s = torch.quantile(raw.abs(), rule.quantile, dim=1, keepdim=True)
        s = s.clamp(1.0, rule.max_value)
        return torch.maximum(torch.minimum(raw, s), -s) / s

    def _scale(self, v: Tensor, node: Tensor) -> Tensor:
        c = self._c[node]
        if self._rule.variance in (None, "unused"):
            return c
        if self._low is None or self._high is None:
            return torch.where(c > 0, v.sqrt(), 0.0)
        half = 0.5 * (v + 1.0)
        return torch.where(c > 0, (self._low[node].lerp(self._high[node], half)).exp(), 0.0)
