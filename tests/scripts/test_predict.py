"""predict.py beyond one folder: lists, patterns, URLs, tables, formats, features, parts of many processes."""

import contextlib
import io
import json
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import config
from huggingface_hub import constants
from pyarrow import parquet
from torch import nn

import predict
from creature.console import BROKEN_IMAGES
from creature.data.eval_transform import EvalTransform
from creature.data.normalize import Normalize
from creature.errors import UserError
from creature.inference import members
from creature.inference.inputs import list_inputs
from creature.inference.prediction import to_predictions
from creature.inference.predictor import predict_batches
from creature.inference.prepare import ImageInput
from helpers import ROOT
from helpers.hub import Repo, serve
from helpers.processes import launch
from helpers.runs import read_csv


@pytest.fixture(scope="module")
def fold(run: Path) -> str:
    return str(run / "fold-0")


@pytest.fixture(scope="module")
def pictures(drawn: Path) -> list[Path]:
    return sorted((drawn / "test").iterdir())


@pytest.fixture(scope="module")
def expected(fold: str, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Label and probability of each test image, as the CSV of the folder says."""
    out = tmp_path_factory.mktemp("expected") / "p.csv"
    assert predict.main([fold, str(drawn / "test"), "--out", str(out)]) == 0
    return {row[0]: row[2:4] for row in read_csv(out)[1:]}


def by_name(out: Path) -> dict[str, list[str]]:
    return {Path(row[0]).name: row[2:4] for row in read_csv(out)[1:]}


# What is given


def test_patterns_are_spelled_out(fold, drawn, expected, tmp_path):
    assert predict.main([fold, str(drawn / "**" / "000?1.jpg"), "--out", str(tmp_path / "p.csv")]) == 0
    actual = by_name(tmp_path / "p.csv")
    inside = {name for name in expected if name in actual}
    assert actual and {name: actual[name] for name in inside} == {name: expected[name] for name in inside}
    with pytest.raises(UserError, match="no file matches this pattern"):
        predict.main([fold, str(drawn / "*.webp")])


def test_a_list_on_the_standard_input_is_read(fold, pictures, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in pictures[:5]) + "\n"))
    assert predict.main([fold, "-", "--out", str(tmp_path / "p.csv")]) == 0
    assert by_name(tmp_path / "p.csv") == {path.name: expected[path.name] for path in pictures[:5]}


@pytest.fixture
def site(drawn: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(drawn / "test")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls_are_fetched_when_asked_and_only_then(fold, site, pictures, expected, tmp_path):
    url, out = f"{site}/{pictures[0].name}", tmp_path / "p.csv"
    with pytest.raises(UserError, match="a URL is only fetched with --urls"):
        predict.main([fold, url])
    assert predict.main([fold, url, f"{site}/none.jpg", "--urls", "--out", str(out)]) == BROKEN_IMAGES
    actual = {row[0]: row for row in read_csv(out)[1:]}
    assert actual[url][2:4] == expected[pictures[0].name]
    assert actual[f"{site}/none.jpg"][1].startswith("cannot be fetched") and actual[f"{site}/none.jpg"][2] == ""


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x.jpg"])
def test_other_schemes_are_no_urls(fold, url):
    with pytest.raises(UserError, match="no such file or folder"):
        predict.main([fold, url, "--urls"])


@pytest.fixture(scope="module")
def table(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All test images and a broken one as Parquet, in three row groups; their names in a column of their own."""
    path = tmp_path_factory.mktemp("table") / "pictures.parquet"
    images = [{"bytes": p.read_bytes(), "path": p.name} for p in pictures] + [{"bytes": b"broken", "path": "x"}]
    names = [p.name for p in pictures] + ["broken"]
    parquet.write_table(pa.table({"image": images, "name": names}), path, row_group_size=10)
    return path


def test_a_parquet_file_is_streamed(fold, table, pictures, expected, tmp_path):
    out = tmp_path / "p.csv"
    assert predict.main([fold, str(table), "--out", str(out)]) == BROKEN_IMAGES
    rows = read_csv(out)[1:]
    assert [row[0].rpartition("/")[2] for row in rows] == [f"{k:08d}" for k in range(25)]
    assert [row[2:4] for row in rows[:24]] == [expected[p.name] for p in pictures] and rows[24][2] == ""
    with pytest.raises(UserError, match=r"--image-column: .* has no column 'picture'; it has image, name"):
        predict.main([fold, str(table), "--image-column", "picture"])


def test_a_path_in_a_table_is_never_opened(fold, pictures, tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": [{"bytes": None, "path": str(pictures[0])}]}), path)
    assert predict.main([fold, str(path), "--out", str(tmp_path / "p.csv")]) == BROKEN_IMAGES
    assert "holds no bytes" in read_csv(tmp_path / "p.csv")[1][1]


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet at all PAR1"])
def test_a_damaged_parquet_file_is_one_sentence(fold, tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"t.parquet: cannot be read as Parquet"):
        predict.main([fold, str(tmp_path / "t.parquet")])


def test_a_data_set_of_the_hub_is_streamed_in_parts(fold, table, pictures, expected, tmp_path, monkeypatch):
    with serve() as hub:
        for name, value in (("ENDPOINT", hub.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
            monkeypatch.setattr(constants, name, value)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        hub.repos["datasets/me/creatures"] = repo = Repo(private=False)
        whole = parquet.read_table(table)
        shards = {}
        for k, rows in enumerate((whole.slice(0, 12), whole.slice(12))):
            parquet.write_table(rows, tmp_path / "shard.parquet")
            shards[f"data/test-{k:05d}-of-00002.parquet"] = (tmp_path / "shard.parquet").read_bytes()
        repo.add("main", "pictures", shards)
        out = tmp_path / "parts"
        source = "hub:me/creatures:test"
        assert predict.main([fold, source, "--out", f"{out}/"]) == BROKEN_IMAGES
        assert len(list(out.glob("part-*.parquet"))) == 2
        rows = parquet.read_table(out).to_pylist()
        message = [(row["label"], f"{row['probability']:.6f}") for row in sorted(rows, key=lambda row: row["id"])[:24]]
        assert message == [tuple(expected[p.name]) for p in pictures] and len(rows) == 25
        with pytest.raises(UserError, match="hub:me/nothing:test: cannot be streamed"):
            predict.main([fold, "hub:me/nothing:test", "--out", f"{out}/"])
    with pytest.raises(UserError, match="written hub:USER/DATASET:SPLIT"):
        predict.main([fold, "hub:me/creatures", "--out", f"{out}/"])


# What is written


def test_json_lines_and_parquet_say_what_csv_says(fold, drawn, expected, tmp_path):
    test = str(drawn / "test")
    for name in ("p.jsonl", "p.parquet"):
        assert predict.main([fold, test, "--top", "2", "--out", str(tmp_path / name)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert lines == parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert {row["id"]: [row["label"], f"{row['probability']:.6f}"] for row in lines} == expected
    assert all(row["probability_2"] <= row["probability"] and row["label_2"] != row["label"] for row in lines)
    with pytest.raises(UserError, match=r"--out: must end in .csv, .jsonl or .parquet"):
        predict.main([fold, test, "--out", str(tmp_path / "p.xlsx")])


def test_features_are_what_the_classifier_sees(fold, drawn, pictures, expected, tmp_path):
    out = tmp_path / "p.parquet"
    assert predict.main([fold, str(drawn / "test"), "--embed", "--out", str(out)]) == 0
    rows = parquet.read_table(out).to_pylist()
    model = members.load_member(Path(fold), torch.device("cpu")).model
    logits = model.get_classifier()(torch.tensor([row["embedding"] for row in rows]))  # type: ignore[operator]
    probabilities = logits.softmax(1).max(1).values.tolist()
    np.testing.assert_allclose(probabilities, [row["probability"] for row in rows], atol=1e-5)
    assert {row["id"]: row["label"] for row in rows} == {name: row[0] for name, row in expected.items()}
    with pytest.raises(UserError, match=r"--embed needs --out FILE.parquet"):
        predict.main([fold, str(drawn / "test"), "--embed", "--out", str(tmp_path / "p.csv")])
    with pytest.raises(UserError, match="--embed needs one model, and --members are several"):
        predict.main([str(Path(fold).parent), str(drawn / "test"), "--members", "--embed", "--out", str(out)])


def test_a_batch_that_does_not_fit_is_halved_until_it_does(pictures):
    fits, asked = 3, []

    class Small(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            asked.append(len(pixels))
            if len(pixels) > fits:
                raise torch.OutOfMemoryError("no room")
            return pixels.mean((2, 3))

        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.zeros(1))

    normalize = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    member = members.Member(
        Path("none"),
        ("a", "b", "c"),
        Small(),
        normalize=normalize,
        transform=EvalTransform(8, "squash", (0.0, 0.0, 0.0)),
    )
    predictor = members.predictor([member])
    listed = [ImageInput(path.name, path.read_bytes) for path in pictures]
    rows = list(to_predictions(predict_batches(predictor, listed, 8), predictor, 1))
    assert [row.id for row in rows] == [path.name for path in pictures] and {row.status for row in rows} == {"ok"}
    assert asked[:3] == [8, 4, 2] and set(asked[3:]) == {2}
    fits = 0
    with pytest.raises(UserError, match="has no room for a single image; try cpu"):
        list(predict_batches(members.predictor([member]), listed, 8))


# Parts


def united(out: Path) -> list[dict]:
    return sorted(parquet.read_table(out).to_pylist(), key=lambda row: row["id"])


@pytest.fixture(scope="module")
def many(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred files, of 24 contents, and one that is broken."""
    folder = tmp_path_factory.mktemp("many")
    for k in range(100):
        (folder / f"{k:03d}.jpg").write_bytes(pictures[k % 24].read_bytes())
    (folder / "bad.jpg").write_bytes(b"bad")
    return folder


def test_two_processes_write_each_row_once_and_an_interrupted_run_goes_on(fold, many, pictures, expected, tmp_path):
    out = tmp_path / "parts"
    words = ("--multi_gpu", "--num_processes", "2", "predict.py", fold, str(many), "--batch-size", "8")
    done = launch(*words, "--out", f"{out}/")
    assert "4 of 4 shards" in done.stdout + done.stderr, done.stderr
    rows = united(out)
    assert [row["id"] for row in rows] == sorted(path.name for path in many.iterdir())
    message = {row["id"]: [row["label"], f"{row['probability']:.6f}"] for row in rows if row["status"] == "ok"}
    assert message == {f"{k:03d}.jpg": expected[pictures[k % 24].name] for k in range(100)}
    parts = sorted(out.glob("part-*.parquet"))
    before = {path.name: path.stat().st_mtime_ns for path in parts}
    parts[1].unlink()
    (out / f".{parts[1].name}.999").write_bytes(b"what a process that was killed left")
    assert predict.main([fold, str(many), "--batch-size", "8", "--out", f"{out}/"]) == 0  # the broken one is elsewhere
    after = {path.name: path.stat().st_mtime_ns for path in sorted(out.glob("part-*.parquet"))}
    said_again = [(row["id"], row["status"], row["label"]) for row in united(out)]
    assert said_again == [(row["id"], row["status"], row["label"]) for row in rows]
    assert [name for name in before if before[name] != after[name]] == [parts[1].name]


def test_parts_of_other_pictures_or_another_model_are_refused(fold, run, many, drawn, tmp_path):
    out = f"{tmp_path}/parts/"
    predict.main([fold, str(drawn / "test"), "--out", out])
    with pytest.raises(UserError, match="holds predictions with other images; name another folder"):
        predict.main([fold, str(many), "--out", out])
    with pytest.raises(UserError, match="with other model"):
        predict.main([str(run / "fold-1"), str(drawn / "test"), "--out", out])
    with pytest.raises(UserError, match="with other top"):
        predict.main([fold, str(drawn / "test"), "--out", out, "--top", "2"])


def test_several_processes_need_a_folder(fold, drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes write shards into one folder: --out DIR/"):
        predict.main([fold, str(drawn / "test"), "--out", str(tmp_path / "p.csv")])


def test_a_submission_is_no_folder(fold, drawn, tmp_path):
    with pytest.raises(UserError, match=r"a submission is one file, such as prediction.csv"):
        predict.main([fold, str(drawn / "test"), "--format", "submission", "--out", f"{tmp_path}/"])


def test_members_of_a_run_are_its_ensemble(run, drawn, tmp_path):
    import ensemble

    out = [tmp_path / name for name in ("a.csv", "b.csv")]
    test = str(drawn / "test")
    assert predict.main([str(run), test, "--members", "--top", "3", "--out", str(out[0])]) == 0
    assert ensemble.main([str(run), "--images", test, "--format", "full", "--top", "3", "--out", str(out[1])]) == 0
    assert out[0].read_bytes() == out[1].read_bytes()


def test_a_reader_that_leaves_early_is_no_traceback(fold, drawn):
    command = f"{sys.executable} predict.py {fold} {drawn / 'test'} | head -1"
    root = ROOT
    done = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr and done.stdout


def test_what_is_listed_is_listed_once(drawn, pictures):
    with pytest.raises(UserError, match="is given twice"):
        list_inputs([str(pictures[0]), str(drawn / "test" / "*")])
    with contextlib.chdir(drawn):
        assert [item.id for item in list_inputs(["test"])] == [path.name for path in pictures]


def test_patterns_may_name_tables_and_submissions_may_not(fold, table, tmp_path):
    pattern = str(table.parent / "*.parquet")
    assert predict.main([fold, pattern, "--out", str(tmp_path / "p.csv")]) == BROKEN_IMAGES
    assert len(read_csv(tmp_path / "p.csv")) == 26
    with pytest.raises(UserError, match="images of a table have no file names"):
        predict.main([fold, str(table), "--format", "submission", "--out", str(tmp_path / "s.csv")])


def test_a_parquet_file_that_is_damaged_inside_is_one_sentence(fold, table, tmp_path):
    content = bytearray(table.read_bytes())
    content[40:2000] = b"\xff" * 1960
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"t.parquet: damaged in row group 0"):
        predict.main([fold, str(tmp_path / "t.parquet"), "--out", str(tmp_path / "p.csv")])
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_batch_gets_the_memory_of_the_one_before_it():
    """Counted in pages that the kernel has to clear."""
    script = """
import resource, torch
from torch import nn
from creature.device import keep_memory
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        model(torch.ones(8, 3, 224, 224)).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
anew = faults()
keep_memory(torch.device("cpu"))
faults()
print(faults() < anew / 10)
"""
    words, root = [sys.executable, "-c", script], Path(predict.__file__).parent
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_mirror_images_give_other_probabilities_and_parts_of_their_own(fold, pictures, tmp_path):
    plain, both, parts = tmp_path / "p.csv", tmp_path / "m.csv", f"{tmp_path}/parts/"
    names = [str(path) for path in pictures]
    assert predict.main([fold, *names, "--out", str(plain)]) == 0
    assert predict.main([fold, *names, "--out", str(both), "--mirror"]) == 0
    mirrored, alone = read_csv(both), read_csv(plain)
    assert [row[0] for row in mirrored] == [row[0] for row in alone] and mirrored != alone
    assert predict.main([fold, *names, "--out", parts, "--mirror"]) == 0
    with pytest.raises(UserError, match="holds predictions with other mirror"):
        predict.main([fold, *names, "--out", parts])
