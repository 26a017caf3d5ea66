"""The results as a page: the last line of every goal and case as a table in README.md, and as figure.png.

python benchmarks/table.py
"""

import argparse
import ast
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
GOALS = {
    "P1": "input, cold",
    "P2": "input, from the cache",
    "P3": "training loop",
    "P4": "K folds",
    "P5": "ensemble",
    "P6": "prediction",
    "P7": "start-up",
    "P8": "rows",
    "P9": "two processes",
    "P10": "time to accuracy",
    "P11": "checkpoints",
    "P12": "GPU, compiled",
    "P13": "hand-over of batches",
    "P14": "beside other programs",
    "R4": "resumed start",
}
RATIOS = ("time", "memory")  # units of a ratio to a peer; any other is an amount of ours alone
MET, MISSED, OTHER, GOAL = "#0072b2", "#d55e00", "#999999", "#444444"  # colours that the colour-blind can tell apart

Line = dict[str, Any]


def latest(results: Path) -> list[Line]:
    """The last line of each goal and case, by goal, in the order in which the cases were first measured."""
    found: dict[tuple[str, str], Line] = {}
    for text in results.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        found[line["goal"], line["case"]] = line
    return sorted(found.values(), key=lambda line: list(GOALS).index(line["goal"]))


def verdict(line: Line) -> str:
    """Whether the goal is met, and by how much of its limit; a dash for a peer that no goal names."""
    if line["limit"] is None:
        return "-"
    apart = line["ratio"] / line["limit"] - 1
    if apart <= 0:
        return f"met by {-apart:.0%}"
    return f"met within the interval, {apart:.0%} above" if line["met"] else f"**missed by {apart:.0%}**"


def limit_of(line: Line) -> str:
    """What the goal allows at most."""
    return "-" if line["limit"] is None else f"{line['limit']:.3g}"


def measured(line: Line) -> str:
    """The median with its interval, and its unit where it is no ratio."""
    (low, high), shape, unit = line["interval"], ".3g", f" {line['unit']}"
    if line["unit"] in RATIOS:
        shape, unit = ".3f", ""
    return f"{line['ratio']:{shape}}" + (f" [{low:{shape}}, {high:{shape}}]" if low < high else "") + unit


def result_table(lines: Sequence[Line]) -> str:
    """Markdown: a row for each goal and case, one for each goal that nothing has measured, and the machines."""
    rows = [
        "| goal | case | measured [95 %] | pairs | at most | | threads | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for goal, title in GOALS.items():
        mine = [line for line in lines if line["goal"] == goal]
        for line in mine:
            note = f" ({line['note']})" if line.get("note") else ""
            found = measured(line), str(line["pairs"]), limit_of(line), verdict(line)
            cells = f"{goal} {title}", line["case"] + note, *found, str(line["threads"]), line["date"]
            rows.append(f"| {' | '.join(cells)} |")
        if not mine:
            rows.append(f"| {goal} {title} | | not measured | | | | | |")
    machines = dict.fromkeys(
        f"Measured on {line['machine']}, {line['cores']} cores, Python {line['python']}, "
        + ", ".join(f"{name} {number}" for name, number in line["versions"].items())
        + "."
        for line in lines
    )
    return "\n".join([*rows, "", *machines]).rstrip()


def program_table(folder: Path) -> str:
    """Markdown: each program with what its docstring says first, and how it is started."""
    rows = ["| what | command |", "|---|---|"]
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(text)) or ""
        command = re.search(r"^python benchmarks/.*$", said, re.M)
        if command and '__name__ == "__main__"' in text:
            rows.append(f"| {said.splitlines()[0]} | `{command[0]}` |")
    return "\n".join(rows)


def put(page: str, name: str, table: str) -> str:
    """The page with the table between the markers of this name; the prose around them stays."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = page.split(begin)
    return before + begin + "\n" + table + "\n\n" + end + rest.split(end)[1]


def draw(lines: Sequence[Line], path: Path) -> None:
    """Ours beside the peer for every ratio: a dot and its interval, a tick at the goal, the peer at 1."""
    shown = [line for line in lines if line["unit"] in RATIOS][::-1]
    labels = [textwrap.fill(f"{line['goal']}  {line['case']}", 58, subsequent_indent="     ") for line in shown]
    figure = Figure(figsize=(9, 1 + 0.36 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for at, line in enumerate(shown):
        colour = OTHER if line["limit"] is None else MET if line["met"] else MISSED
        axes.plot(line["interval"], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(line["ratio"], at, "o", color=colour, markersize=6)
        if line["limit"] is not None:
            axes.plot(line["limit"], at, "|", color=GOAL, markersize=14, markeredgewidth=2)
        value = f"{line['ratio']:.{2 if line['ratio'] >= 0.1 else 3}f}"
        axes.annotate(value, (1.01, at), xycoords=("axes fraction", "data"), va="center", color=colour)
    axes.axvline(1, color=GOAL, linewidth=1, linestyle=":")
    limits = [line["limit"] for line in shown if line["limit"] is not None]
    least = min(limits + [line["interval"][0] for line in shown])
    most = max(limits + [line["interval"][1] for line in shown])
    axes.set(xscale="log", xlim=(least / 1.25, max(1, most) * 1.25), ylim=(-0.7, len(shown) - 0.3))
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1, 1.5, 2, 3, 5) if least / 1.25 <= tick]
    axes.set_xticks([tick for tick in ticks if tick <= max(1, most) * 1.25], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()
    axes.set_yticks(range(len(shown)), labels, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("ours over the peer (dotted)\nleft is better; | the goal, at most; grey: no goal")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    lines, readme = latest(HERE / "results.jsonl"), HERE / "README.md"
    page = put(readme.read_text(encoding="utf-8"), "results", result_table(lines))
    readme.write_text(put(page, "programs", program_table(HERE)), encoding="utf-8")
    draw(lines, HERE / "figure.png")
    print(f"{len(lines)} results are in {readme} and {HERE / 'figure.png'}")


if __name__ == "__main__":
    main()
