"""The benchmarks as programs, and the page that their results become; what they measure is no test's business."""

import json
import runpy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from creature.data.decode import decode
from creature.errors import UserError
from creature.inference.classifier import load
from creature.member_folds import check_members, find_members
from helpers import ROOT

FOLDER = ROOT / "benchmarks"
PROGRAMS = [path for path in sorted(FOLDER.glob("*.py")) if '__name__ == "__main__"' in path.read_text()]
LINE = {
    "goal": "P5",
    "case": "ours over five runs",
    "unit": "time",
    "limit": 0.4,
    "ratio": 0.3,
    "interval": [0.28, 0.32],
    "pairs": 15,
    "met": True,
    "threads": 2,
    "cores": 2,
    "machine": "x86_64",
    "python": "3.11.7",
    "versions": {"torch": "2.14.1"},
    "date": "2026-01-31",
}


@pytest.fixture(autouse=True)
def beside_the_programs(monkeypatch: pytest.MonkeyPatch):
    """Programs import one another by name, as scripts do."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_says_how_it_is_used(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert f"python benchmarks/{path.name}" in capsys.readouterr().out


def test_the_step_that_is_measured_is_that_of_the_bare_loop():
    step = import_module("step")
    recipe, batches = step.make_recipe("test_resnet", 32, 4), step.ready_batches(32, 4, 2)
    (our_model, ours), (bare_model, bare) = step.our_loop(recipe, batches), step.bare_loop(recipe, batches)
    ours()
    bare()
    assert step.difference(our_model, bare_model) == 0


def test_the_run_that_predictions_are_measured_with_answers(tmp_path: Path):
    runpy.run_path(str(FOLDER / "predict.py"))["write_run"](tmp_path / "run", "test_resnet")
    check_members(find_members([tmp_path / "run"]))
    asked = load(tmp_path / "run/fold-4", device="cpu").predictor
    logits = asked.compute({t: np.zeros((2, 3, t.size, t.size), dtype=np.uint8) for t in asked.transforms}).logits
    assert logits.shape == (1, 2, len(asked.class_names)) and np.isfinite(logits).all()


def test_a_folder_without_photos_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no JPEG is there"):
        import_module("pictures").jpegs(tmp_path)


def test_every_peer_is_recorded_and_only_a_goal_s_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sides, table = import_module("sides"), import_module("table")
    monkeypatch.setattr(sides, "RESULTS", tmp_path / "results.jsonl")
    sides.judge("P1", "photos", "ours", {"ours": [1.0] * 3, "slow": [2.0] * 3, "quick": [0.5] * 3}, {"quick": 0.7})
    slow, quick = table.latest(tmp_path / "results.jsonl")
    assert (slow["ratio"], quick["ratio"]) == (0.5, 2.0)
    assert (table.verdict(slow), table.verdict(quick)) == ("-", "**missed by 186%**")
    assert "| 3 | - | - |" in table.result_table([slow])


def written(folder: Path, *lines: dict[str, Any]) -> Path:
    results = folder / "results.jsonl"
    results.write_text("".join(json.dumps(LINE | line) + "\n" for line in lines))
    return results


def test_the_last_line_of_a_goal_and_case_counts(tmp_path: Path):
    table = import_module("table")
    lines = table.latest(written(tmp_path, {"goal": "P10"}, {"ratio": 0.9}, {"case": "other"}, {"ratio": 0.2}))
    assert [(line["goal"], line["case"], line["ratio"]) for line in lines] == [
        ("P5", "ours over five runs", 0.2),
        ("P5", "other", 0.3),
        ("P10", "ours over five runs", 0.3),
    ]


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ({}, "0.300 [0.280, 0.320] | 15 | 0.4 | met by 25%"),
        (
            {"ratio": 0.44, "interval": [0.39, 0.5]},
            "0.440 [0.390, 0.500] | 15 | 0.4 | met within the interval, 10% above",
        ),
        ({"ratio": 0.5, "interval": [0.45, 0.6], "met": False}, "0.500 [0.450, 0.600] | 15 | 0.4 | **missed by 25%**"),
        (
            {"ratio": 48, "interval": [48, 48], "limit": 60, "unit": "bytes a row"},
            "48 bytes a row | 15 | 60 | met by 20%",
        ),
    ],
)
def test_a_row_says_by_how_much_a_goal_is_met_or_missed(line: dict[str, Any], cells: str):
    rows = import_module("table").result_table([LINE | line]).splitlines()
    assert f"| P5 ensemble | ours over five runs | {cells} | 2 | 2026-01-31 |" in rows
    assert "| P4 K folds | | not measured | | | | | |" in rows


def test_a_page_keeps_its_prose_and_takes_the_newest_table():
    put, page = import_module("table").put, "above\n<!-- results -->\n<!-- end of results -->\nbelow\n"
    assert put(page, "results", "| new |") == put(put(page, "results", "| old |"), "results", "| new |")
    assert put(page, "results", "| new |") == ("above\n<!-- results -->\n\n| new |\n\n<!-- end of results -->\nbelow\n")


def test_the_page_has_a_place_for_the_tables_and_names_every_program_of_its_folder():
    table = import_module("table")
    page = table.put((FOLDER / "README.md").read_text(), "programs", table.program_table(FOLDER))
    assert table.put(page, "results", table.result_table([LINE])).count("| P5 ensemble |") == 1
    assert [path.name for path in PROGRAMS if f"python benchmarks/{path.name}" not in page] == []


def test_the_figures_are_drawn(tmp_path: Path):
    table, growth = import_module("table"), import_module("growth")
    amount = {"goal": "P8", "unit": "bytes a row", "ratio": 48, "limit": 60, "interval": [48, 48]}
    table.draw(
        [
            LINE,
            LINE | {"case": "another", "limit": None},
            LINE | {"goal": "P6", "ratio": 1.2, "met": False},
            LINE | amount,
        ],
        tmp_path / "figure.png",
    )
    points = [growth.Point(panel, "curve", x, 3 + 0.5 * x) for panel in growth.PANELS for x in (1, 2, 4)]
    growth.draw(points, tmp_path / "growth.png")
    assert min(path.stat().st_size for path in tmp_path.glob("*.png")) > 10_000


def test_no_two_pictures_of_a_table_are_alike(tmp_path: Path):
    import_module("pictures").write_table(tmp_path / "rows.parquet", 300)
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    pictures = [row["image"]["bytes"] for row in rows]
    assert len(set(pictures)) == 300 and len({row["label"] for row in rows}) == 100
    assert {decode(data).size for data in pictures} == {(4, 4)}


def test_an_epoch_ends_when_its_weights_are_there(tmp_path: Path):
    accuracy = import_module("accuracy")
    code = f"import pathlib; [pathlib.Path({str(tmp_path)!r}, str(k)).mkdir() for k in (1, 2)]"
    ends, whole = accuracy.timed(["-c", code], lambda epoch: tmp_path / str(epoch), tmp_path / "log")
    assert len(ends) == 2 and 0 < ends[0] <= ends[1] <= whole
    with pytest.raises(UserError, match=r"(?s)ended with 1.*no such rate"):
        accuracy.timed(["-c", "raise SystemExit('no such rate')"], lambda epoch: tmp_path / "none", tmp_path / "log")


def test_a_finished_training_is_not_trained_again(tmp_path: Path):
    accuracy, trained = import_module("accuracy"), []

    def train(work: Path) -> Any:
        assert not any(work.iterdir())
        trained.append(work)
        (work / "weights").touch()
        if len(trained) == 2:
            raise KeyboardInterrupt
        return accuracy.Training([2.0, 3.0], 4.0, [0.5, 0.6])

    def once(seed: int) -> Any:
        return accuracy.once({"side": "timm", "seed": seed}, train, tmp_path, [tmp_path / "trainings.jsonl"])

    first = once(0)
    with pytest.raises(KeyboardInterrupt):
        once(1)
    assert once(0) == once(1) == first and len(trained) == 3


def test_the_first_epoch_that_reaches_an_accuracy_is_the_time_to_it():
    training = import_module("accuracy").Training([2.0, 3.0, 4.0], 5.0, [0.5, 0.7, 0.6])
    assert [training.seconds_to(target) for target in (0.5, 0.6, 0.8)] == [2.0, 3.0, None]


def test_times_to_accuracy_are_compared_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    accuracy, sides = import_module("accuracy"), import_module("sides")
    monkeypatch.setattr(sides, "RESULTS", tmp_path / "results.jsonl")
    ours = [accuracy.Training([1.0, 2.0], 3.0, [last - 0.1, last]) for last in (0.79, 0.80)]
    peers = [accuracy.Training([10.0, 20.0], 25.0, [0.6, last]) for last in (0.69, 0.75)]
    accuracy.compare(ours, peers, "tiny")
    run_copy, fixed = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert run_copy["ratio"] == pytest.approx((1 / 20 + 2 / 20) / 2) and not run_copy["note"]
    assert fixed["ratio"] == pytest.approx(2 / 25, abs=1e-4) and "2 of 2 seeds" in fixed["note"]
    accuracy.compare([accuracy.Training([1.0], 2.0, [0.5])], peers[:1], "weak")
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
