"""ctd-engine experiment"""

from __future__ import annotations

from pathlib import Path

import click

from ctd_engine.cli._common import emit, json_option, one_line_errors
from ctd_engine.experiments.markdown import markdown
from ctd_engine.experiments.plots import draw_pictures, require_plots
from ctd_engine.experiments.report import make_report, write_report
from ctd_engine.experiments.runner import run_experiment
from ctd_engine.experiments.settings import EXPERIMENTS, get_experiment

__all__ = ["experiment"]


@click.command()
@click.argument("name", type=click.Choice(list(EXPERIMENTS)))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the runs, the report and the pictures.",
)
@click.option("--quick", is_flag=True, help="A trial of minutes: few steps, few samples.")
@click.option("--seeds", type=int, default=3, show_default=True, help="How many.")
@click.option("--steps", type=int, help="Steps of a training run, instead of the experiment's own.")
@json_option
@one_line_errors
def experiment(
    name: str, out: Path, quick: bool, seeds: int, steps: int | None, as_json: bool
) -> None:
    """Compare denoising with contrastive training: tables and pictures of arXiv 2407.08946.

    Every finished run is kept: after Ctrl-C the same command goes on.
    """
    settings = get_experiment(name, quick=quick, steps=steps)
    require_plots()
    try:
        results = run_experiment(settings, out, seeds, progress=not as_json)
    except KeyboardInterrupt:
        click.echo("interrupted; finished runs are kept, the same command goes on", err=True)
        raise SystemExit(130) from None
    report = make_report(settings, results)
    text = markdown(report)
    paths = write_report(out, report, text) + draw_pictures(settings, report, out)
    emit(report, text + "\n\n" + "\n".join(f"wrote {path}" for path in paths), as_json)
