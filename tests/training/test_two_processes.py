"""Two gloo processes through the real launcher: the same data, schedule and scores as one process."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import train
from creature.metrics.predictions import load_predictions
from helpers import ROOT
from helpers.processes import launch
from helpers.runs import read_history


@pytest.fixture(scope="module")
def settings(tiny: Path) -> list[str]:
    chosen = ("backbone.name=test_vit", "folds.train=[0]", "augment.mix=none", "schedule.epochs=2", "batch_size=15")
    return ["--recipe", str(tiny), *(word for setting in chosen for word in ("--set", setting))]


@pytest.fixture(scope="module")
def one(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    train.main([*settings, "--out", str(out)])
    return out


def test_two_processes_train_the_same_model_as_one(settings: list[str], one: Path, tmp_path: Path):
    # 48 rows in batches of 15: the last one holds 3, so the shares of the two processes differ.
    done = launch("--multi_gpu", "--num_processes", "2", "train.py", *settings, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "two/fold-0/result.json").read_text())
    assert result["processes"] == 2
    rows = [read_history(out / "fold-0") for out in (one, tmp_path / "two")]
    np.testing.assert_allclose([r["loss"] for r in rows[1]], [r["loss"] for r in rows[0]], atol=1e-5)
    assert [r["learning_rate"] for r in rows[1]] == [r["learning_rate"] for r in rows[0]]
    held = [load_predictions(out / "fold-0/held_out.safetensors") for out in (one, tmp_path / "two")]
    assert held[0].ids == held[1].ids
    np.testing.assert_allclose(held[1].logits, held[0].logits, atol=1e-4)


def test_one_process_behind_the_launcher_is_plain_python_bit_for_bit(settings: list[str], one: Path, tmp_path: Path):
    done = launch("--num_processes", "1", "train.py", *settings, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    names = ("model.safetensors", "held_out.safetensors")
    assert all((tmp_path / "run/fold-0" / n).read_bytes() == (one / "fold-0" / n).read_bytes() for n in names)


PREDICT_N = """
import sys, numpy as np, torch
from accelerate import Accelerator
from torch import nn
from datasets import Dataset, Image, Features, Value, ClassLabel
from io import BytesIO
from PIL import Image as Pillow
from creature.data.loader import ImageDataset
from creature.data.order import held_out_requests
from creature.training.distributed import share_of
from creature.data.eval_transform import EvalTransform
from creature.data.augment import exact_transform
from creature.training.loop import predict
from creature.data.normalize import Normalize
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(sys.argv[1])

def image(i):
    out = BytesIO()
    Pillow.new("RGB", (8, 8), (i * 7, i, 255 - i)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}

class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))

table = Dataset.from_dict({"id": list(map(str, range(33))), "image": [image(i) for i in range(33)], "label": [0]*33})
table = table.cast_column("image", Image(decode=False))
images = ImageDataset(table, exact_transform(EvalTransform(8, "squash", (0, 0, 0))))
for n in range(1, 34):
    rows = np.random.default_rng(n).permutation(33)[:n]
    batches = map(images.__getitems__, (request.items for request in held_out_requests(rows, 4, share_of(accelerator))))
    logits = predict(accelerator, Mean(), batches, rows=rows, batch_size=4, normalize=Normalize((0, 0, 0), (1, 1, 1)))
    expected = np.stack([rows * 7, rows, 255 - rows], 1) / 255
    np.testing.assert_allclose(logits, expected, atol=1e-6)
accelerator.end_training()
sys.stdout.write(f"done {accelerator.process_index}" + chr(10))
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_every_held_out_row_is_predicted_exactly_once_for_any_n(tmp_path: Path, processes: int):
    script = tmp_path / "predict_n.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{PREDICT_N}")
    several = ["--multi_gpu"] if processes > 1 else []
    done = launch(*several, "--num_processes", str(processes), str(script), str(processes))
    assert done.returncode == 0, done.stderr
    assert all(f"done {process}" in done.stdout for process in range(processes))


def test_fsdp_is_refused_with_a_reason(settings: list[str], tmp_path: Path, monkeypatch):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    from creature.errors import UserError

    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UserError, match="FSDP: shards of weights"):
        train.main([*settings, "--out", str(tmp_path / "run")])


def test_processes_that_do_not_know_of_each_other_are_refused(settings: list[str], tmp_path: Path, monkeypatch):
    from creature.errors import UserError

    monkeypatch.setattr("creature.training.distributed.Accelerator", lonely)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="started 2 processes, but Accelerate sees 1"):
        train.main([*settings, "--out", str(tmp_path / "run")])


def test_several_processes_of_which_the_launcher_starts_one_are_refused(settings: list[str], tmp_path: Path):
    done = launch("--cpu", "--num_processes", "2", "train.py", *settings, "--out", str(tmp_path / "run"))
    assert "given several processes and started one" in done.stderr, done.stderr


def lonely(**options):
    from accelerate import Accelerator

    os.environ["WORLD_SIZE"] = "1"
    accelerator = Accelerator(**options)
    os.environ["WORLD_SIZE"] = "2"
    return accelerator
