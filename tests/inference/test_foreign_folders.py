"""Folders from strangers: nothing in them is executed, and whatever they hold is loaded or refused in a sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

import ensemble
import predict
import train
from creature.data.folds import read_folds
from creature.errors import BrokenError, UserError
from creature.inference.members import load_member
from creature.storage import write_manifest
from helpers import ROOT, faults
from helpers.fold_files import old_text
from helpers.runs import start

AUDITED = """
import json, sys, os, pickle
sys.path.insert(0, {root!r})
import train, predict, ensemble, datasets, evaluate, sklearn.metrics
from creature.ensembling import out_of_fold, weights, compare
from creature.inference import members, prediction_files
from creature.metrics import scores
from creature.data import sources, dataset, loader, scan
from creature.training import train_data, checkpoint
from creature.inference import load
import creature.console
job = json.loads(sys.argv[1])
# Once before the hook, on a good folder: what is imported late is imported now.
for words in job["before"]:
    {{"predict": predict, "ensemble": ensemble, "train": train}}[words[0]].main(words[1:])
seen = []
def hook(event, args):
    internet = event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(args[1], tuple))
    foreign = event == "exec" and job["folder"] in str(getattr(args[0], "co_filename", ""))
    started = event in ("pickle.find_class", "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec")
    if started or internet or foreign:
        seen.append([event, str(args)[:200]])
    if event == "import" and job["folder"] in str(args[1] or ""):
        seen.append([event, str(args)[:200]])
sys.addaudithook(hook)
said = []
for words in job["words"]:
    try:
        code = {{"predict": predict, "ensemble": ensemble, "train": train}}[words[0]].main(words[1:])
    except creature.console.UserError as error:
        code = str(error)
    said.append(code)
print(json.dumps([seen, said]))
"""


class Evil:
    """Would leave a file if it were unpickled."""

    def __reduce__(self):
        return (exec, ("open('unpickled', 'w').close()",))


@pytest.fixture
def hostile(run: Path, tmp_path: Path) -> Path:
    """A run whose folders hold all that other programs would execute, and that this one must not even open."""
    import pickle

    folder = tmp_path / "hostile"
    shutil.copytree(run, folder)
    for fold in (*folder.glob("fold-*"), folder):
        for name in ("pytorch_model.bin", "optimizer.pt", "model.pkl", "random_states_0.pkl", "scheduler.bin"):
            (fold / name).write_bytes(pickle.dumps(Evil()))
        for name in ("modeling.py", "__init__.py", "timm.py", "sitecustomize.py", "conftest.py"):
            (fold / name).write_text("open('executed', 'w').close()\n")
        (fold / "setup.cfg").write_text("[x]\n")
    config = folder / "fold-1/config.json"
    output = json.loads(config.read_text())
    output |= {"auto_map": {"AutoModel": "modeling.Evil"}, "custom": "!!python/object/apply:os.system ['x']"}
    config.write_text(json.dumps(output))
    return folder


def test_predict_ensemble_and_resume_execute_nothing_of_a_hostile_folder(hostile, run, tiny, drawn, tmp_path):
    test = str(drawn / "test")
    shutil.rmtree(hostile / "fold-2")
    shutil.copytree(run, tmp_path / "good")
    resume = ["train", "--recipe", str(tiny), "--resume", "--out"]
    weights = tmp_path / "backbone.safetensors"
    save_tensors(timm.create_model("test_resnet").state_dict(), weights)
    local = ("backbone.pretrained=true", f"backbone.weights={weights}", "folds.train=[0]")
    fresh = ["train", "--recipe", str(tiny), *(word for each in local for word in ("--set", each)), "--out"]
    job = {
        "folder": str(hostile),
        "before": [
            ["predict", str(tmp_path / "good/fold-0"), test, "--out", str(tmp_path / "p.csv")],
            ["ensemble", str(tmp_path / "good"), "--images", test, "--out", str(tmp_path / "p.csv")],
            [*fresh, str(tmp_path / "new")],
        ],
        "words": [
            ["predict", str(hostile / "fold-0"), test, "--out", str(tmp_path / "a.csv")],
            ["predict", str(hostile / "fold-1"), test, "--out", str(tmp_path / "b.csv")],
            ["ensemble", str(hostile), "--images", test, "--out", str(tmp_path / "c.csv")],
            [*resume, str(hostile)],
            [*fresh, str(tmp_path / "from-weights")],
        ],
    }
    code = AUDITED.format(root=str(ROOT))
    # Free to ask the network, and yet nothing is asked.
    online = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)],
        cwd=tmp_path, env=online, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen, output = json.loads(done.stdout.splitlines()[-1])
    assert seen == [] and output == [0, 0, 0, 0, 0]
    assert not list(tmp_path.rglob("unpickled")) and not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "../../evil"}, "timm has no architecture"),
        ({"architecture": "os.system"}, "timm has no architecture"),
        ({"architecture": 7}, "timm has no architecture|no model can be loaded"),
        ({"label_names": []}, "0 classes"),
        ({"label_names": "abc"}, "no model can be loaded|classes"),
        ({"label_names": None}, "no model can be loaded"),
        ({"model_args": {"img_size": 10**9}}, "no model can be loaded"),
        ({"pretrained_cfg": {}}, "no model can be loaded"),
        ({"pretrained_cfg": None}, "no model can be loaded"),
        ({"size": 10**6}, "pixels are more"),
        ({"size": -5}, "pixels are more"),
        ({"std": [0, 0, 0]}, "std from 0.001"),
        ({"std": [1e-300] * 3}, "std from 0.001"),
        ({"mean": [1e300] * 3}, "mean from 0 to 1"),
        ({"crop": "zzz"}, "crop_mode must be one of squash, center, border"),
        ({"mean": [float("nan")] * 3}, "mean and std must be"),
    ],
)
def test_a_hostile_config_is_one_sentence(run, tmp_path, change, message):
    shutil.copytree(run / "fold-0", tmp_path / "fold-0")
    path = tmp_path / "fold-0/config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        if key == "size":
            config["pretrained_cfg"]["input_size"] = [3, value, value]
        elif key == "crop":
            config["pretrained_cfg"]["crop_mode"] = value
        elif key in ("mean", "std"):
            config["pretrained_cfg"][key] = value
        else:
            config[key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_member(tmp_path / "fold-0", torch.device("cpu"))


def test_weights_whose_answers_are_no_numbers_are_refused(run, drawn, tmp_path):
    shutil.copytree(run / "fold-0", tmp_path / "fold-0")
    path = tmp_path / "fold-0/model.safetensors"
    nothing = {k: np.full_like(v, np.nan) if v.dtype.kind == "f" else v for k, v in load_file(path).items()}
    save_file(nothing, path)
    with pytest.raises(BrokenError, match="its logits are no finite numbers; its weights are damaged"):
        predict.main([str(tmp_path / "fold-0"), str(drawn / "test"), "--out", str(tmp_path / "p.csv")])
    assert not (tmp_path / "p.csv").exists()


def test_weights_that_the_result_was_not_measured_with_are_no_member(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copyfile(run / "fold-1/model.safetensors", tmp_path / "run/fold-0/model.safetensors")
    with pytest.raises(BrokenError, match=r"fold-0/model.safetensors is not what its result.json was measured with"):
        ensemble.main([str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("correct", 10**6, BrokenError, r"fold-0/result\.json: .*and n only 24"),
        ("n", "24", BrokenError, r"fold-0/result\.json: n: .*valid integer"),
        ("fold", 99, UserError, "fold-0 holds fold 99, as its result.json says"),
    ],
)
def test_a_result_that_cannot_be_is_refused(run, tmp_path, key, value, error, message):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/fold-0/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(error, match=message) as refused:
        ensemble.main([str(tmp_path / "run")])
    assert ": :" not in str(refused.value)


def test_a_fold_that_the_run_does_not_have_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.move(tmp_path / "run/fold-0", fold := tmp_path / "run/fold-99")
    (fold / "result.json").write_text((fold / "result.json").read_text().replace('"fold": 0', '"fold": 99'))
    with pytest.raises(BrokenError, match=r"fold-99/result\.json: fold: 99 is none of the run's folds"):
        ensemble.main([str(tmp_path / "run")])


def test_a_config_that_nests_or_swells_is_one_sentence(run, tmp_path):
    shutil.copytree(run / "fold-0", tmp_path / "fold-0")
    path = tmp_path / "fold-0/config.json"
    for text in ("[" * 100_000, '{"a": ' * 50_000, " " * (65 * 2**20), "\ud800", "[]", "7", "null"):
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(UserError, match=r"no model can be loaded|is larger than 64 MiB"):
            load_member(tmp_path / "fold-0", torch.device("cpu"))


def fuzz(run: Path, tmp_path: Path, count: int) -> None:
    """Weights with bytes changed, mostly in the header, are loaded or refused; nothing else happens."""
    shutil.copytree(run / "fold-0", tmp_path / "fold-0")
    path = tmp_path / "fold-0/model.safetensors"
    good, random = path.read_bytes(), np.random.default_rng(0)
    header = int.from_bytes(good[:8], "little")
    for _ in range(count):
        data = bytearray(good)
        for _ in range(random.integers(1, 8)):
            inside = random.choice([8, 8 + header, len(data)], p=[0.2, 0.7, 0.1])
            value = random.choice([0, 0xFF, ord('"'), ord("9"), int(random.integers(256))])
            data[random.integers(min(inside, len(data)))] = value
        if random.random() < 0.2:
            data = data[: random.integers(len(data))]
        path.write_bytes(data)
        try:
            load_member(tmp_path / "fold-0", torch.device("cpu"))
        except UserError as error:
            assert "no model can be loaded from here" in str(error)


def test_fuzzed_weights_are_loaded_or_refused(run, tmp_path):
    fuzz(run, tmp_path, 150)


@pytest.mark.full
def test_many_fuzzed_weights_are_loaded_or_refused(run, tmp_path):
    fuzz(run, tmp_path, 2000)


JUNK = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    10**30,
    "",
    "x",
    "[/a]",
    "../../x",
    [],
    [1],
    {},
    [[]],
    "é" * 1000,
    2**63,
)


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """Where the values of a JSON document are: it itself, each value of a mapping, the first ones of a list."""
    yield here
    inside = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*here, key))


def spoilt(text: str, random: np.random.Generator) -> bytes:
    """A JSON text with a value replaced or removed, and now and then some bytes changed."""
    output = json.loads(text)
    *parents, last = list(places(output))[random.integers(1, len(list(places(output))))]
    inner = output
    for key in parents:
        inner = inner[key]
    if random.random() < 0.2:
        del inner[last]
    else:
        inner[last] = JUNK[random.integers(len(JUNK))]
    data = bytearray(json.dumps(output).encode())
    for _ in range(random.integers(1, 20) if random.random() < 0.15 else 0):
        data[random.integers(len(data))] = random.integers(256)
    return bytes(data)


def fuzz_words(run: Path, tiny: Path, drawn: Path, tmp_path: Path, count: int) -> None:
    """Whatever the JSON files of a folder say, it is used or refused in a sentence."""
    random, out = np.random.default_rng(0), str(tmp_path / "out.csv")
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    shutil.rmtree(begun / "fold-2")
    (begun / "folds.json").write_text(old_text(read_folds(begun)))  # as an earlier version began it
    (begun / "folds.arrow").unlink()
    faults.start_until_step(4, tiny, begun, resume=True)
    state = sorted((begun / "fold-2/state").iterdir())[-1].relative_to(begun)
    test = str(drawn / "test")
    uses = {
        "fold-0/config.json": lambda work: load_member(work / "fold-0", torch.device("cpu")),
        "fold-0/result.json": lambda work: predict.main([str(work / "fold-0"), test, "--out", out]),
        "fold-1/result.json": lambda work: ensemble.main([str(work), "--images", test, "--out", out]),
        "run.json": lambda work: start(tiny, work, resume=True),
        "folds.json": lambda work: start(tiny, work, resume=True),
        f"{state}/state.json": lambda work: start(tiny, work, resume=True),
    }
    outcomes = {name: Counter() for name in uses}
    for name, use in uses.items():
        for number in range(count):
            work = tmp_path / f"{name.replace('/', '-')}-{number}"
            shutil.copytree(begun, work)
            (work / name).write_bytes(spoilt((work / name).read_text(), random))
            if name.startswith(str(state)):
                (work / state / "manifest.json").unlink()
                write_manifest(work / state)
            try:
                use(work)
                outcomes[name]["used"] += 1
            except (UserError, BrokenError):
                outcomes[name]["refused"] += 1
            shutil.rmtree(work)
    print(outcomes)
    assert all(counts["refused"] for counts in outcomes.values())


def test_fuzzed_words_are_used_or_refused(run, tiny, drawn, tmp_path):
    fuzz_words(run, tiny, drawn, tmp_path, 8)


@pytest.mark.full
def test_many_fuzzed_words_are_used_or_refused(run, tiny, drawn, tmp_path):
    fuzz_words(run, tiny, drawn, tmp_path, 150)


# Names


HOSTILE = ("[/a]", "[red]x", "a\x1b[2Jb", "=cmd()", "+1", "@x", "<b>x</b>", "x\u202ey", "n\nl")


def test_hostile_class_names_reach_no_terminal_and_no_table_raw(tiny, drawn, tmp_path, capsys):
    train_folder, classes = tmp_path / "train", sorted((drawn / "train").iterdir())
    for name, folder in zip(HOSTILE, classes, strict=False):
        shutil.copytree(folder, train_folder / name.replace("/", "\u2044"))
    settings = (f"images.train=[{train_folder}]", "folds.train=[0]", "schedule.epochs=1")
    assert start(tiny, tmp_path / "run", *settings) == 0
    out = tmp_path / "p.csv"
    assert predict.main([str(tmp_path / "run/fold-0"), str(train_folder), "--top", "3"]) == 0
    assert ensemble.main([str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown
    assert "a%1B[2Jb" in shown and "[red]x" in shown and "x\\x202ey" in shown
    predict.main([str(tmp_path / "run/fold-0"), str(train_folder), "--out", str(out)])
    assert "\x1b" not in out.read_text() and len(out.read_text().splitlines()) == 1 + len(
        list(train_folder.rglob("*.jpg"))
    )


def test_weights_of_another_kind_are_refused_with_the_reason(run, tmp_path):
    shutil.copytree(run / "fold-0", tmp_path / "fold-0")
    path = tmp_path / "fold-0/model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"extra": np.zeros(3, dtype=np.float32)}, path)
    with pytest.raises(UserError, match="no model can be loaded from here"):
        load_member(tmp_path / "fold-0", torch.device("cpu"))
    Image.new("RGB", (8, 8)).save(path, "PNG")
    with pytest.raises(UserError, match="no model can be loaded from here"):
        load_member(tmp_path / "fold-0", torch.device("cpu"))


def test_nothing_of_train_is_needed_to_refuse(tmp_path):
    with pytest.raises(UserError, match="no finished fold here"):
        predict.main([str(tmp_path), "x.jpg"])
    with pytest.raises(UserError, match="cannot read"):
        train.main(["--recipe", str(tmp_path / "none.yaml")])
