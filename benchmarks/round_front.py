"""Rounds against evaluations of DDPM-1000 over windows, as numbers and a picture.

    python benchmarks/round_front.py             measures, writes results/cpu/front.json, draws
    python benchmarks/round_front.py --draw      draws what was measured: docs/images/rounds.png

Exact denoiser of 8x8 digits, 4 samples. Every point is a window; ours have secant slopes.
ParaTAA takes 150 to 270 rounds here and is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from bench_rounds import PEERS
from ctd_engine.plots import _pyplot
from round_matrix import RESULTS
from round_paths import run
from round_problems import METHODS, Method, make

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "rounds.png"
NUM_STEPS, NUM_SAMPLES = 1000, 4
TOLERANCE = 0.1
WINDOWS = (8, 12, 16, 32, 64, 100)
OURS = {
    "ours, whole windows": Method("secant"),
    "ours, windows of 1.5x the advance": Method("secant", adaptive_window=1.5),
    "ParaDiGMS": METHODS["ParaDiGMS"],
}
OTHERS = {"ParaSolver, 1 first step": "ParaSolver 1"}


def measure() -> dict[str, list[dict[str, float]]]:
    """Per method and window the rounds of the batch, evaluations per sample and rms error."""
    problem = make("digits 0.1", NUM_STEPS, 1.0)
    truth = problem.sequential(NUM_SAMPLES, 0)
    result: dict[str, list[dict[str, float]]] = {}
    for title in [*OURS, *OTHERS]:
        result[title] = []
        for window in WINDOWS:
            arguments = (window, TOLERANCE, NUM_SAMPLES, 0)
            if title in OURS:
                got = problem.parallel(OURS[title], *arguments)
                samples, rounds = got.samples, got.stats.rounds
                evaluations = float(got.stats.evaluations)
            else:
                cost = run(PEERS[OTHERS[title]], problem, *arguments)
                samples, rounds = cost.samples, int(cost.rounds.max())
                evaluations = float(cost.evaluations.sum())
            point = {
                "window": window,
                "rounds": rounds,
                "evals": evaluations / NUM_SAMPLES,
                "rms": float((samples - truth).square().mean().sqrt()),
            }
            result[title].append(point)
            print(title, point, flush=True)
    return result


def draw(result: dict[str, list[dict[str, float]]], path: Path) -> None:
    """The front as a PNG: evaluations over N against rounds, both on logarithmic axes."""
    pyplot: Any = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    colours = pyplot.get_cmap("tab10").colors
    for index, (title, points) in enumerate(result.items()):
        rounds = [point["rounds"] for point in points]
        evals = [point["evals"] / NUM_STEPS for point in points]
        style = "o-" if title in OURS and title != "ParaDiGMS" else "s--"
        axes.plot(rounds, evals, style, color=colours[index], label=title, markersize=4)
        if title == "ParaDiGMS":
            for point, x, y in zip(points, rounds, evals, strict=True):
                axes.annotate(f"{point['window']}", (x, y), (3, 4), textcoords="offset points")
    axes.axhline(1.15, color="0.6", linewidth=0.8)
    place = dict(transform=axes.get_yaxis_transform(), ha="right", va="bottom")
    axes.text(0.99, 1.16, "1.15 N", color="0.4", fontsize=8, **place)
    axes.set(xscale="log", yscale="log", xlabel="rounds of the batch", ylabel="evaluations / N")
    axes.set_xticks([25, 50, 100, 200], ["25", "50", "100", "200"])
    axes.set_yticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
    axes.minorticks_off()
    axes.set_title(f"DDPM-{NUM_STEPS} on digits: windows of {WINDOWS[0]} to {WINDOWS[-1]} points")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    """Measure unless told to draw only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="draw results/cpu/front.json")
    path = RESULTS / "front.json"
    if not parser.parse_args().draw:
        with torch.no_grad():
            path.write_text(json.dumps(measure(), indent=1) + "\n")
    draw(json.loads(path.read_text()), PICTURE)


if __name__ == "__main__":
    main()
