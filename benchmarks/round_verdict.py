"""What the matrix of rounds says: tables for docs/methods.md and a verdict per case.

    python benchmarks/round_verdict.py

Two lines have equal error where ours is at most a tenth larger (rms), or below half a grey level
of 256 (0.0039 on [-1, 1]), and no more samples are far. Ours in a case is the line of least rounds
(of the batch), then of least evaluations, among those with the error of the line they are compared
with. A peer's best line is the same choice among its own, against ParaDiGMS's error; a peer that
reaches it with no line is taken at its most exact.
"""

from __future__ import annotations

import json
from typing import Any

from round_matrix import RESULTS

Line = dict[str, Any]
GREY = 1 / 256
PEERS = ("ParaTAA", "ParaSolver", "SRDS")


def is_equal(line: Line, other: Line) -> bool:
    """Whether a line ends as near the sequential samples as another."""
    return bool(line["rms"] <= max(1.1 * other["rms"], GREY) and line["far"] <= other["far"])


def is_peer(line: Line) -> bool:
    """Whether a line is another paper's method."""
    return line["method"] == "ParaDiGMS" or line["method"].startswith(PEERS)


def cheapest(lines: list[Line], key: str) -> Line:
    """The line of least rounds or evals, and of least evals or rounds among those."""
    other = "evals" if key == "rounds" else "rounds"
    return min(lines, key=lambda line: (line[key], line[other]))


def ours_against(lines: list[Line], other: Line, key: str) -> Line | None:
    """Our cheapest line with the error of another; None where we have none."""
    equal = [line for line in lines if not is_peer(line) and is_equal(line, other)]
    return cheapest(equal, key) if equal else None


def best_of_peer(lines: list[Line], peer: str) -> Line | None:
    """A peer's cheapest line with ParaDiGMS's error, else its most exact one."""
    own = [line for line in lines if line["method"].startswith(peer)]
    first = next(line for line in lines if line["method"] == "ParaDiGMS")
    equal = [line for line in own if is_equal(line, first)]
    if equal:
        return cheapest(equal, "rounds")
    return min(own, key=lambda line: line["rms"]) if own else None


def row(case: str, lines: list[Line]) -> str:
    """A case as a row of the table: ParaDiGMS, each peer's best, ours by rounds."""

    def told(line: Line | None, with_name: bool = False) -> str:
        if line is None:
            return "none"
        name = f"{line['method']}, {line['tolerance']:g}: " if with_name else ""
        return f"{name}{line['rounds']:.1f}, {line['evals']:.0f}, {line['rms']:.4f}"

    first = next(line for line in lines if line["method"] == "ParaDiGMS")
    cells = [told(first), *(told(best_of_peer(lines, peer), True) for peer in PEERS)]
    cells.append(told(ours_against(lines, first, "rounds"), True))
    return "| " + " | ".join([case, *cells]) + " |"


def ratios(lines: list[Line]) -> tuple[float, float, float]:
    """ParaDiGMS over ours at its error: rounds, evals of the same line, evals at no more rounds.

    nan where no line of ours has its error, or none at no more rounds.
    """
    first = next(line for line in lines if line["method"] == "ParaDiGMS")
    nan = float("nan")
    best = ours_against(lines, first, "rounds")
    if best is None:
        return nan, nan, nan
    few = [x for x in lines if x["rounds"] <= first["rounds"]]
    cheap = ours_against(few, first, "evals")
    saved = nan if cheap is None else first["evals"] / cheap["evals"]
    return first["rounds"] / best["rounds"], first["evals"] / best["evals"], saved


def against_peers(lines: list[Line]) -> dict[str, str]:
    """Per peer "better", "equal" or "worse" in rounds at that peer's error, or "no line"."""
    result = {}
    for peer in PEERS:
        line = best_of_peer(lines, peer)
        if line is None:
            continue
        own = ours_against(lines, line, "rounds")
        if own is None:
            result[peer] = "no line"
        else:
            gain = line["rounds"] - own["rounds"]
            result[peer] = "better" if gain > 0 else "worse" if gain < 0 else "equal"
    return result


def main() -> None:
    """Print the tables of all results."""
    cases: dict[str, list[Line]] = {}
    for path in sorted(RESULTS.glob("rounds_*.json")):
        cases |= json.loads(path.read_text())
    print("| case | ParaDiGMS, 0.1 | ParaTAA | ParaSolver | SRDS | ours |\n|" + "---|" * 6)
    print(*(row(case, lines) for case, lines in cases.items()), sep="\n")
    print("\nParaDiGMS over ours: rounds, evals of that line, evals at no more rounds; peers")
    for case, lines in cases.items():
        told = " ".join(f"{value:5.2f}" for value in ratios(lines))
        print(f"{case:28s} {told}  {against_peers(lines)}")


if __name__ == "__main__":
    main()
