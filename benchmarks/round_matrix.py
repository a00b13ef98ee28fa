"""The whole matrix: every problem, solver and window, our methods and the peers', kept as JSON.

    python benchmarks/round_matrix.py [--problem "digits 0.1"] [-k eta0]     measures
    python benchmarks/round_verdict.py                                       tables and verdict

Results go to results/cpu/rounds_PROBLEM.json; a case is a list of `Line`s, see `bench_rounds`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench_rounds import HEADER, Case, measure, references

RESULTS = Path(__file__).parent / "results" / "cpu"
PROBLEMS = (
    "digits 0.1",
    "digits 0.3",
    "mixture 2",
    "mixture 32",
    "mixture 1024",
    "checkpoint",
    "unet",
    "dit",
)
# (N, eta, window, seeds, samples)
SOLVERS = (
    (25, 0.0, 25, 3, 8),
    (50, 0.0, 50, 3, 8),
    (100, 0.0, 100, 3, 8),
    (100, 1.0, 100, 2, 8),
    (1000, 1.0, 100, 1, 4),
    (1000, 1.0, 32, 1, 4),
    (1000, 1.0, 12, 1, 4),
)
# methods and their own tolerances
LONG = {
    "ParaDiGMS": (0.1,),
    "secant": (0.2, 0.1, 0.05),
    "secant, far 8": (0.2, 0.1, 0.05),
    "secant, 2x": (0.1,),
    "ParaTAA 3, 8": (0.05,),
    "ParaSolver 1": (0.1, 0.2),
    "ParaSolver 5": (0.1,),
}
SHORT = {
    "ParaDiGMS": (0.1,),
    "picard": (0.1, 0.05, 0.03),
    "picard, far 4": (0.05, 0.03),
    "secant": (0.1, 0.05, 0.025),
    "secant, far 4": (0.05, 0.025),
    "secant, far 8": (0.1, 0.05),
    "secant, prior": (0.1, 0.05, 0.025),
    "secant, prior, far 4": (0.1, 0.05, 0.025),
    "secant, prior, far 8": (0.1, 0.05, 0.025, 0.0125),
    "ParaTAA 3, 8": (0.05, 0.02),
    "ParaSolver 1": (0.1, 0.05),
    "ParaSolver 5": (0.1,),
}


def entries(num_steps: int, eta: float) -> list[tuple[str, float]]:
    """Methods and tolerances of a solver."""
    chosen = LONG if num_steps > 100 else SHORT
    if eta == 0:
        chosen = chosen | {"SRDS": (0.02, 0.001)}
    return [(name, t) for name, tolerances in chosen.items() for t in tolerances]


def main() -> None:
    """Measure one problem or all, and write a file for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", choices=PROBLEMS, nargs="*", default=PROBLEMS)
    parser.add_argument("-k", default="", help="only cases with this word, such as 1000-eta1")
    arguments = parser.parse_args()
    for problem in arguments.problem:
        path = RESULTS / f"rounds_{problem.replace(' ', '_')}.json"
        # lines that were measured before stay: delete the file to measure them again
        result = json.loads(path.read_text()) if path.exists() else {}
        for num_steps, eta, window, num_seeds, num_samples in SOLVERS:
            case = Case(problem, num_steps, eta, window, num_seeds, num_samples)
            if arguments.k not in case.name:
                continue
            truth, others = references(case)
            print(f"\n{case.name}\n{HEADER}", flush=True)
            lines = result.setdefault(case.name, [])
            done = {(line["method"], line["tolerance"]) for line in lines}
            for name, tolerance in entries(num_steps, eta):
                if (name, tolerance) in done:
                    continue
                line = measure(case, name, tolerance, truth, others)
                lines.append(vars(line))
                print(line, flush=True)
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
