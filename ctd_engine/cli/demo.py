"""ctd-engine demo"""

from __future__ import annotations

from pathlib import Path

import click

from ctd_engine.cli._common import emit, json_option, one_line_errors
from ctd_engine.demo import NUM_SAMPLES, NUM_STEPS, DemoReport, run_demo

__all__ = ["demo"]


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo_output",
    show_default=True,
    help="Folder for the two pictures.",
)
@click.option("--num-samples", type=click.IntRange(min=1), default=NUM_SAMPLES, show_default=True)
@click.option("--num-steps", type=click.IntRange(2, 1000), default=NUM_STEPS, show_default=True)
@json_option
@one_line_errors
def demo(out: Path, num_samples: int, num_steps: int, as_json: bool) -> None:
    """Sample digits sequentially and in parallel, and check that they agree."""
    report = run_demo(out, num_samples=num_samples, num_steps=num_steps, progress=not as_json)
    emit(report.as_dict(), _table(report), as_json)
    if not report.agrees:
        raise SystemExit(1)


def _table(report: DemoReport) -> str:
    lines = ["", f"{'':<22}{'rounds':>8}{'evaluations/sample':>21}{'wall time':>12}"]
    lines += [
        f"{cost.method:<22}{cost.rounds:>8}{cost.evaluations_per_sample:>21.0f}"
        f"{cost.wall_time_s:>10.1f} s"
        for cost in report.costs
    ]
    sequential, parallel = report.costs
    verdict = "agree" if report.agrees else "DO NOT AGREE"
    lines += [
        "",
        f"{report.num_samples} samples {verdict}: root mean squared difference "
        f"{report.rms_difference:.4f} (mean), {report.worst_difference:.4f} (worst sample), "
        f"limit {report.limit} on data in [-1, 1]",
        f"{sequential.rounds / parallel.rounds:.1f}x fewer rounds at "
        f"{parallel.evaluations_per_sample / sequential.evaluations_per_sample:.2f}x the "
        "evaluations",
    ]
    if parallel.wall_time_s >= sequential.wall_time_s:
        lines.append(
            "The wall time is not shorter: here a batch of rows costs about as much as its "
            "rows one after another, so fewer rounds save nothing. They pay where a larger batch "
            "is nearly free, on a GPU with rows to spare."
        )
    lines += ["", *(f"wrote {picture}" for picture in report.pictures)]
    return "\n".join(lines)
