"""Where a backbone begins: folds, runs and folders as timm writes them; what is no such thing is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import predict
from creature.errors import UserError
from creature.inference.load import find_model
from creature.publishing import publish
from creature.recipe import Backbone
from creature.training.backbone import build_backbone, check_backbone, mean_and_std
from helpers.runs import read_csv, start, weights_hash


@pytest.fixture
def fold(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run / "fold-1", tmp_path / "of others"))


def change_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_backbone_has_the_body_and_the_means_of_a_fold_and_a_new_classifier(fold, prefix):
    config = json.loads((fold / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    change_config(fold, **config)
    backbone = Backbone(name=f"{prefix}{fold}")
    check_backbone(backbone)
    model, weights = build_backbone(backbone, 12, 32), load_file(fold / "model.safetensors")
    for name, value in model.state_dict().items():
        expected = torch.zeros_like(value) if name.startswith("fc.") else weights[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert mean_and_std(backbone.name, "backbone")[0] == (0.1, 0.2, 0.3)
    random = build_backbone(Backbone(name=backbone.name, pretrained=False), 12, 32)
    assert not torch.equal(random.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])


def test_a_run_stands_for_its_soup_or_its_first_fold(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    first, named = (build_backbone(Backbone(name=str(path)), 12, 32) for path in (run / "fold-0", tmp_path / "run"))
    torch.testing.assert_close(named.state_dict(), first.state_dict(), rtol=0, atol=0)
    shutil.copytree(run / "fold-2", tmp_path / "run/soup")
    named = build_backbone(Backbone(name=str(tmp_path / "run")), 12, 32)
    torch.testing.assert_close(
        named.state_dict(), build_backbone(Backbone(name=str(run / "fold-2")), 12, 32).state_dict(), rtol=0, atol=0
    )


def test_a_run_is_bound_to_what_it_began_with_and_predicts_without_it(tiny, drawn, fold, tmp_path):
    settings = (f"backbone.name={fold}", "backbone.pretrained=true", "schedule.epochs=1")
    start(tiny, tmp_path / "run", *settings, "folds.train=[0]")
    before = weights_hash(tmp_path / "run/fold-0")
    other = timm.create_model("test_resnet", num_classes=12)
    from creature.training.checkpoint import host_weights, save_weights

    kept = (fold / "model.safetensors").read_bytes()
    save_weights(fold / "model.safetensors", host_weights(other))
    with pytest.raises(UserError, match=r"another recipe.*\n.*backbone\.weights: its content"):
        start(tiny, tmp_path / "run", *settings, "folds.train=[1]", resume=True)
    (fold / "model.safetensors").write_bytes(kept)
    assert start(tiny, tmp_path / "run", *settings, "folds.train=[0, 1]", resume=True) == 0
    assert weights_hash(tmp_path / "run/fold-0") == before
    shutil.rmtree(fold)
    terms = ("--license", "mit", "--data", "drawn", "--dry-run")
    assert publish.main([str(tmp_path / "run"), "me/x", *terms]) == 0
    card = (tmp_path / "run/export/main/README.md").read_text()
    assert "`local-dir:of others`, fine-tuned from a folder of its owner" in card and str(tmp_path) not in card
    out = tmp_path / "p.csv"
    assert predict.main([str(tmp_path / "run"), str(drawn / "test"), "--members", "--out", str(out)]) == 0
    assert len(read_csv(out)) == 25 and len(find_model(str(tmp_path / "run"), all_members=True).folders) == 2


def test_what_is_no_model_of_timm_is_refused(fold, tmp_path):
    def reason() -> str:
        with pytest.raises(UserError, match=r"^backbone\.name: ") as error:
            check_backbone(Backbone(name=f"local-dir:{fold}"))
        return str(error.value)

    config = (fold / "config.json").read_text()
    change_config(fold, architecture="test_resnt")
    assert "timm has no model 'test_resnt'" in reason()
    (fold / "config.json").write_text(config)
    change_config(fold, model_args={"img_size": 32, "class_token": False})
    assert "sets class_token of test_resnet" in reason()
    (fold / "config.json").write_text(config)
    (fold / "model.safetensors").rename(fold / "pytorch_model.bin")
    assert "has no model.safetensors; weights in other formats are not read" in reason()
    for broken in ("[]", "{", '{"architecture": "test_resnet", "pretrained_cfg": 3}'):
        (fold / "config.json").write_text(broken)
        assert "has no config.json as timm writes it" in reason()
    with pytest.raises(UserError, match="no finished fold"):
        (tmp_path / "empty").mkdir()
        check_backbone(Backbone(name=str(tmp_path / "empty")))


def test_weights_that_do_not_fit_what_the_config_says_are_refused(fold):
    change_config(fold, architecture="test_vit")
    with pytest.raises(UserError, match=r"backbone\.name: .* does not fit test_vit"):
        build_backbone(Backbone(name=str(fold)), 12, 32)
