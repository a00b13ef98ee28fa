"""The report of `make gpu-check` as Markdown. Any part of it may be missing, failed or skipped."""

from __future__ import annotations

from typing import Any

from gpu_targets import verdicts
from op_cases import PROVIDERS

Entry = dict[str, Any]


class _Notes:
    """Reasons below the tables, each once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def mark(self, word: str, reason: str) -> str:
        line = " ".join(f"{word}: {reason}".split())[:300]
        if line not in self.lines:
            self.lines.append(line)
        return f"{word} [{1 + self.lines.index(line)}]"

    def missing(self, entry: Entry | None) -> str | None:
        """What stands in the table instead of a number, if there is none."""
        if entry is None:
            return "not reached"
        for word in ("failed", "skipped"):
            if word in entry:
                return self.mark(word, entry[word])
        return None


def _microseconds(entry: Entry | None, notes: _Notes) -> str:
    missing = notes.missing(entry)
    if missing is not None or entry is None:
        return missing or ""
    mark = "" if entry["is_captured"] else " *"
    return f"{entry['median_us']:.1f}{mark}"


def _op_line(row: Entry, notes: _Notes) -> str:
    cells = {provider: _microseconds(row.get(provider), notes) for provider in PROVIDERS}
    fused = row.get("fused") or {}

    def ratio(provider: str) -> str:
        entry = row.get(provider) or {}
        if "median_us" not in entry or "median_us" not in fused:
            return "-"
        return f"{entry['median_us'] / fused['median_us']:.1f}"

    spread, share, host = "", "-", "-"
    if "median_us" in fused:
        spread = f" ({fused['p20_us']:.1f}, {fused['p80_us']:.1f})"
        host = f"{fused['host_us']:.0f}"
        if fused.get("of_copy") is not None:
            share = f"{100 * fused['of_copy']:.0f} %"
    return (
        f"| {row['case']} | {row['megabytes']:.1f} | {cells['eager']} | {cells['compile']} "
        f"| {cells['fused']}{spread} | {share} | {ratio('eager')} | {ratio('compile')} | {host} |"
    )


def _sampler_line(row: Entry, notes: _Notes) -> str:
    head = f"| {row['problem']} | {row['samples']} | {row['sampler']} "
    missing = notes.missing(row)
    if missing is not None:
        return f"{head}| {missing} |" + " - |" * 8

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.0f} %"

    captured = row["captured_model_ms"]
    rounds = f"{row['rounds']}" + ("" if row["all_converged"] else " (not converged)")
    return (
        f"{head}| {rounds} | {row['evaluations_per_sample']:.0f} | {row['seconds']:.3f} "
        f"| {row['round_ms']:.3f} | {row['rows_per_round']:.0f} | {row['model_ms']:.3f} "
        f"| {percent(row['overhead'])} | {'-' if captured is None else f'{captured:.3f}'} "
        f"| {percent(row['overhead_captured'])} |"
    )


def markdown(report: Entry) -> str:
    """The report's tables; what has no number says why."""
    notes = _Notes()
    state = {True: ", with changes that are not committed", False: ""}.get(
        report["is_dirty"], ", state of the tree unknown"
    )
    speed = notes.missing(report["copy"]) or f"{report['copy']['gigabytes_per_s']:.0f} GB/s"
    lines = [
        f"# {report['gpu']}, {report['date']}, commit {report['commit']}{state}",
        "",
        f"torch {report['torch']}, Triton {report['triton']}, CUDA {report['cuda']}, driver "
        f"{report['driver']}; a copy of 1 GiB: {speed}; reproduce with `make gpu-check`.",
        "",
        f"Tests marked gpu: {report['tests']['summary']}.",
        "",
        "Times are the device's, from a cold cache, medians; * marks calls that no CUDA graph "
        "could hold. The last column is the host's time for one call.",
        "",
        "| operation | MB | eager us | compiled us | fused us (p20, p80) | fused: of copy "
        "| x eager | x compiled | fused: host us |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_op_line(row, notes) for row in report["ops"]]
    lines += [
        "",
        "DDPM, wall time of `sample`, median. The model's time is that of a call alone at the "
        "same number of rows, eager or as a CUDA graph; what a round takes beyond it is overhead. "
        "Sequential samplers are given their noise.",
        "",
        "| model | samples | sampler | rounds | evaluations/sample | seconds | ms/round "
        "| rows/round | model ms | overhead | captured model ms | overhead |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_sampler_line(row, notes) for row in report["samplers"]]
    lines += ["", "| target | asked | seen |", "|---|---|---|"]
    lines += [f"| {v.name} | {v.target} | {v.words} |" for v in verdicts(report)]
    lines += [""] + [f"{name}: {count:,} parameters." for name, count in report["models"].items()]
    lines += [f"[{i}] {line}" for i, line in enumerate(notes.lines, 1)]
    if report["unfinished"]:
        lines += ["", f"Not finished: {', '.join(report['unfinished'])}."]
    lines += ["", f"All of it took {report['seconds']:.0f} s."]
    return "\n".join(lines) + "\n"
