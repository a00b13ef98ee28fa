"""Pictures of what a model knows: what is drawn is what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctd_engine import plots
from ctd_engine.likelihood import Calibration, Estimate, ScoreErrors

F64 = torch.float64


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, kept open until the test ends."""
    pyplot = plots._pyplot()
    kept: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(pyplot, "close", kept.append)
        yield kept
    for figure in kept:
        pyplot.close(figure)


def score_errors(num_dimensions: int, logsnrs: list[float]) -> ScoreErrors:
    points = torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 3.0]], dtype=F64)[:, :num_dimensions]
    noise = torch.arange(len(logsnrs) * 3, dtype=F64).view(len(logsnrs), 3)
    return ScoreErrors(points, torch.tensor(logsnrs, dtype=F64), 7.0 * noise, noise)


def test_score_errors_in_1d_are_sorted_by_place_and_level(
    figures: list[Any], tmp_path: Path
) -> None:
    maps = {"a": score_errors(1, [3.0, -1.0]), "b": score_errors(1, [-1.0, 3.0])}
    plots.save_score_errors(tmp_path / "map.png", maps)
    assert (tmp_path / "map.png").stat().st_size > 1000
    first, second = figures[0].axes[:2]
    assert (first.get_title(), second.get_title()) == ("a", "b")
    # rows are places 0, 1, 2; columns are levels -1, 3; 0 is drawn as the lowest colour
    mesh = first.collections[0]
    np.testing.assert_allclose(mesh.get_array(), [[3, 5e-5], [5, 2], [4, 1]])
    np.testing.assert_allclose(second.collections[0].get_array(), [[5e-5, 3], [2, 5], [1, 4]])
    assert (mesh.norm.vmin, mesh.norm.vmax) == (5e-5, 5.0)


def test_score_errors_in_2d_have_a_panel_per_level(figures: list[Any], tmp_path: Path) -> None:
    plots.save_score_errors(tmp_path / "map.png", {"a": score_errors(2, [3.0, -1.0, 0.5])})
    panels = figures[0].axes[:3]
    assert [p.get_title() for p in panels] == [f"a, log-SNR {v}" for v in ("3", "-1", "0.5")]
    np.testing.assert_allclose(panels[1].collections[0].get_array(), [3.0, 4.0, 5.0])


def test_calibration_leaves_out_empty_bins(figures: list[Any], tmp_path: Path) -> None:
    values = torch.tensor([0.1, torch.nan, 0.9], dtype=F64)
    curve = Calibration(values, values / 2, values / 10, torch.tensor([4, 0, 3]))
    plots.save_calibration(tmp_path / "curve.png", {"model": curve})
    axes = figures[0].axes[0]
    line = axes.containers[0].lines[0]
    np.testing.assert_allclose(line.get_xydata()[[0, 2]], [[0.1, 0.05], [0.9, 0.45]])
    bars = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bars[0], [[0.1, 0.04], [0.1, 0.06]])
    assert [text.get_text() for text in axes.get_legend().texts] == ["calibrated", "model"]


def test_denoising_errors_have_bars(figures: list[Any], tmp_path: Path) -> None:
    levels = torch.tensor([-1.0, 2.0])
    curve = Estimate(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.25]))
    plots.save_denoising_errors(tmp_path / "curve.png", levels, {"model": curve})
    (container,) = figures[0].axes[0].containers
    np.testing.assert_allclose(container.lines[0].get_xydata(), [[-1.0, 1.0], [2.0, 3.0]])
    bars = container.lines[2][0].get_segments()
    np.testing.assert_allclose(bars[1], [[2.0, 2.75], [2.0, 3.25]])


def test_rejects_no_maps_and_those_of_a_diverged_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="maps must hold at least one map, got none"):
        plots.save_score_errors(tmp_path / "map.png", {})
    good = score_errors(1, [0.0])
    for value in (torch.nan, torch.inf):
        bad = good._replace(noise=torch.full_like(good.noise, value))
        with pytest.raises(ValueError, match=r'maps\["b"\] must hold finite errors, got NaN'):
            plots.save_score_errors(tmp_path / "map.png", {"a": good, "b": bad})


def test_rejects_maps_that_do_not_fit(tmp_path: Path) -> None:
    deep = ScoreErrors(torch.zeros(2, 3), torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, 2))
    for maps in (
        {"a": deep},
        {"a": score_errors(1, [0.0]), "b": score_errors(2, [0.0])},
        {"a": score_errors(2, [0.0]), "b": score_errors(2, [0.0, 1.0])},
    ):
        with pytest.raises(ValueError, match="maps must be of points in 1D or 2D, all with as"):
            plots.save_score_errors(tmp_path / "map.png", maps)
