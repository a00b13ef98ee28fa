"""The verdict on the matrix of rounds: what counts as equal error, and which lines are compared."""

from __future__ import annotations

import json
import math

import pytest

from bench_rounds import PEERS, Case, measure, references
from round_front import draw
from round_matrix import SOLVERS, entries
from round_problems import METHODS
from round_verdict import against_peers, best_of_peer, is_equal, ours_against, ratios, row


def _line(method, rounds, evals, rms=0.001, far=0.0, tolerance=0.1):
    return dict(method=method, tolerance=tolerance, rounds=rounds, evals=evals, rms=rms, far=far)


LINES = [
    _line("ParaDiGMS", 12.0, 120.0, rms=0.02),
    _line("secant", 4.0, 90.0, rms=0.5, far=0.1),
    _line("secant", 6.0, 60.0, rms=0.021),
    _line("secant, 2x", 8.0, 40.0, rms=0.004),
    _line("ParaTAA 3, 8", 5.0, 70.0, rms=0.3),
    _line("ParaTAA 3, 8", 7.0, 90.0, rms=0.01),
    _line("SRDS", 6.0, 80.0, rms=0.02),
]


def test_equal_error():
    """A tenth more is equal, so is anything below half a grey level; more far samples are not."""
    first = _line("a", 1, 1, rms=0.02, far=0.1)
    assert is_equal(_line("b", 1, 1, rms=0.0219, far=0.1), first)
    assert not is_equal(_line("b", 1, 1, rms=0.0221), first)
    assert not is_equal(_line("b", 1, 1, rms=0.01, far=0.2), first)
    assert is_equal(_line("b", 1, 1, rms=0.0038), _line("c", 1, 1, rms=1e-6))


def test_ours_is_the_cheapest_line_of_equal_error():
    assert ours_against(LINES, LINES[0], "rounds") is LINES[2]
    assert ours_against(LINES, LINES[0], "evals") is LINES[3]
    assert ours_against(LINES[:2], LINES[0], "rounds") is None


def test_ratios():
    assert ratios(LINES) == pytest.approx((2.0, 2.0, 3.0))
    assert math.isnan(ratios(LINES[:2])[0])


def test_peers_are_met_at_their_own_error():
    """ParaTAA's line is its cheapest with ParaDiGMS's error; our line must have its error."""
    assert best_of_peer(LINES, "ParaTAA") is LINES[5]
    assert best_of_peer(LINES, "ParaSolver") is None
    # ours of 6 rounds is too coarse for ParaTAA's 0.01, the one of 8 is not
    assert against_peers(LINES) == {"ParaTAA": "worse", "SRDS": "equal"}
    assert against_peers([LINES[0], LINES[2], _line("SRDS", 9, 9, rms=0.02)]) == {"SRDS": "better"}
    assert row("c", LINES).count("|") == 7


def test_the_matrix_names_what_exists():
    for num_steps, eta, window, _, _ in SOLVERS:
        names = {name for name, _ in entries(num_steps, eta)}
        assert names <= {*METHODS, *PEERS}
        assert ("SRDS" in names) == (eta == 0)
        assert window <= num_steps


@pytest.mark.parametrize("name", PEERS)
def test_a_line_of_every_peer(name):
    case = Case("mixture 2", 12, 0.0, 12, num_seeds=2, num_samples=3)
    truth, others = references(case)
    line = measure(case, name, 0.0, truth, others)
    assert line.rms <= 1e-12
    assert line.each <= line.rounds <= 12
    assert line.evals >= 12


def test_the_front_is_drawn(tmp_path):
    points = [dict(window=8, rounds=9, evals=1100.0, rms=0.0)]
    path = tmp_path / "front.png"
    draw(json.loads(json.dumps({"ParaDiGMS": points, "ours, whole windows": points})), path)
    assert path.read_bytes().startswith(b"\x89PNG")
