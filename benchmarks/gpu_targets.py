"""The figures that a run of `make gpu-check` has to reach, judged from its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gpu_samplers import SAMPLERS

Entry = dict[str, Any]

OPERATIONS = ("picard_update", "contrastive_reduction")
OF_COPY, OVER_EAGER, OVER_COMPILED = 0.85, 4.0, 1.5
OVERHEAD, OVERHEAD_ROWS = 0.05, 64
OVER_SEQUENTIAL, OVER_GRAPHS = 8.0, 4.0


@dataclass(frozen=True)
class Verdict:
    """One figure: what is asked for and the worst (of operations) or best (of windows) seen."""

    name: str
    target: str
    seen: float | None  # None: the run has no number for it
    is_met: bool
    format: Callable[[float], str]

    @property
    def words(self) -> str:
        """The measured figure and whether it will do."""
        if self.seen is None:
            return "not measured"
        return f"{self.format(self.seen)}, {'met' if self.is_met else 'MISSED'}"


def _at_least(name: str, target: float, seen: float | None, *, percent: bool = False) -> Verdict:
    write = _percent if percent else _times
    is_met = seen is not None and seen >= target
    return Verdict(name, f"at least {write(target)}", seen, is_met, write)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _times(value: float) -> str:
    return f"{value:.1f}x"


def _least(values: list[float | None]) -> float | None:
    # a case without a number must not make the others look like all
    known = [value for value in values if value is not None]
    return min(known) if values and len(known) == len(values) else None


def _ratio(row: Entry, provider: str) -> float | None:
    fused, other = (row.get(name, {}).get("median_us") for name in ("fused", provider))
    return None if fused is None or other is None else other / fused


def _operations(report: Entry) -> Iterator[Verdict]:
    for op in OPERATIONS:
        rows = [r for r in report["ops"] if r["case"].startswith(op + " ") and r["is_large"]]
        shares = [row.get("fused", {}).get("of_copy") for row in rows]
        yield _at_least(f"{op}, share of copy bandwidth", OF_COPY, _least(shares), percent=True)
        for provider, target in (("eager", OVER_EAGER), ("compile", OVER_COMPILED)):
            ratios = [_ratio(row, provider) for row in rows]
            yield _at_least(f"{op}, faster than {provider}", target, _least(ratios))


def _samplers(report: Entry) -> Iterator[Verdict]:
    rows = [row for row in report["samplers"] if "seconds" in row]
    wide = [
        row["overhead"]
        for row in rows
        if row["problem"].startswith("U-Net")
        and row["sampler"] == f"parallel, window {OVERHEAD_ROWS}"
    ]
    overhead = min(wide, default=None)
    yield Verdict(
        f"time per round beyond the U-Net's own, {OVERHEAD_ROWS} rows",
        f"at most {_percent(OVERHEAD)}",
        overhead,
        overhead is not None and overhead <= OVERHEAD,
        _percent,
    )
    one = [row for row in rows if row["problem"].startswith("demo") and row["samples"] == 1]
    seconds = {row["sampler"]: row["seconds"] for row in one}
    ours = min((value for name, value in seconds.items() if name not in SAMPLERS), default=None)
    for rival, target in zip(SAMPLERS, (OVER_SEQUENTIAL, OVER_GRAPHS), strict=True):
        speed_up = None if ours is None or rival not in seconds else seconds[rival] / ours
        yield _at_least(f"DDPM-1000, one image, faster than {rival}", target, speed_up)


def verdicts(report: Entry) -> list[Verdict]:
    """Every target with the run's figure. A target that is missed is no fault of the run."""
    return [*_operations(report), *_samplers(report)]
