"""Overlays of what speaks for an answer: the map is the answer, place by place, or there is none."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import predict
from creature.console import BROKEN_IMAGES
from creature.errors import UserError
from creature.inference import members
from creature.inference.explain import AGAINST, FOR, SIDE, activation_map, file_name, overlay
from helpers.runs import start


def member(model: torch.nn.Module, run: Path) -> members.Member:
    """A member of a trained run with another network in it."""
    loaded = members.load_member(run / "fold-0", torch.device("cpu"))
    return members.Member(
        loaded.folder, loaded.class_names, model.eval(), normalize=loaded.normalize, transform=loaded.transform
    )


def view(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 64, 64), dtype=np.uint8)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "regnetx_002"])
def test_the_places_of_a_map_have_the_logit_for_their_mean(run, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=12)
    torch.nn.init.normal_(model.get_classifier().bias)  # type: ignore[operator, union-attr]
    asked = member(model, run)
    with torch.inference_mode():
        logits = asked.model(asked.normalize(torch.from_numpy(view())[None]))[0].numpy()
    for label in (int(logits.argmax()), int(logits.argmin())):
        actual = activation_map(asked, view(), logits=logits, label=label)
        assert actual.shape[0] > 1
        bias = model.get_classifier().bias.detach().numpy()  # type: ignore[operator, union-attr]
        run_copy = logits - bias
        assert actual.mean() == pytest.approx(run_copy[label] - run_copy.mean(), abs=1e-3)


def test_what_is_added_to_all_classes_alike_changes_no_map(run):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=12)
    asked, maps = member(model, run), []
    for added in (0.0, 0.5):
        with torch.inference_mode():
            model.get_classifier().weight += added  # type: ignore[operator, union-attr]
            logits = asked.model(asked.normalize(torch.from_numpy(view())[None]))[0].numpy()
        maps.append(activation_map(asked, view(), logits=logits, label=3))
    assert maps[1] == pytest.approx(maps[0], abs=1e-4) and np.abs(maps[0]).max() > 1e-2


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_a_network_whose_logits_are_no_means_of_places_is_refused(run, name):
    asked = member(timm.create_model(name, num_classes=12), run)
    size = timm.get_pretrained_cfg(name).input_size[1]  # type: ignore[union-attr]
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8)
    with torch.inference_mode():
        logits = asked.model(asked.normalize(torch.from_numpy(pixels)[None]))[0].numpy()
    with pytest.raises(UserError, match="no averages over the places"):
        activation_map(asked, pixels, logits=logits, label=0)


def test_what_speaks_for_a_label_is_orange_and_what_speaks_against_it_is_blue():
    places = np.zeros((4, 4), dtype=np.float32)
    places[0, 0], places[3, 3] = 2.0, -1.0
    drawn = overlay(np.full((3, 32, 32), 128, dtype=np.uint8), places).astype(int)
    assert drawn.shape == (SIDE, SIDE, 3)
    grey, corner, other, middle = np.full(3, 128), drawn[4, 4], drawn[-4, -4], drawn[SIDE // 2, SIDE // 4]
    assert np.abs(corner - (grey + 0.7 * (FOR - grey))).max() <= 2
    assert np.abs(other - (grey + 0.35 * (AGAINST - grey))).max() <= 2  # half as strong
    assert np.abs(middle - grey).max() <= 1


def test_every_readable_picture_gets_its_overlay(run, drawn, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    out, words = tmp_path / "why", [str(drawn / "test"), str(tmp_path / "broken.jpg")]
    assert predict.main([str(run / "fold-0"), *words, "--explain", str(out)]) == BROKEN_IMAGES
    shown = capsys.readouterr().out
    assert f"{out} gets each image" in shown and "not read" in shown
    files = sorted(out.iterdir())
    assert len(files) == 24 and not any("broken" in path.name for path in files)
    with Image.open(files[0]) as image:
        assert image.size == (SIDE, SIDE)
    table = tmp_path / "p.csv"
    assert predict.main([str(run / "fold-0"), *words, "--out", str(tmp_path / "plain.csv")]) == BROKEN_IMAGES
    assert predict.main([str(run / "fold-0"), *words, "--explain", str(out), "--out", str(table)]) == BROKEN_IMAGES
    assert table.read_bytes() == (tmp_path / "plain.csv").read_bytes()  # an explanation changes no answer


@pytest.mark.parametrize("more", [["--members"], ["--mirror"], ["--embed", "--out", "f.parquet"]])
def test_an_explanation_is_of_one_answer(run, drawn, tmp_path, more):
    with pytest.raises(UserError, match="--explain shows what one prediction rests on"):
        predict.main([str(run), str(drawn / "test"), "--explain", str(tmp_path / "why"), *more])


def test_a_trained_network_of_another_kind_is_refused_in_a_sentence(tiny, drawn, tmp_path):
    words = ("backbone.name=test_vit", "images.size=160", "schedule.epochs=1", "folds.train=[0]")
    start(tiny, tmp_path / "vit", *words)
    with pytest.raises(UserError, match=r"fold-0: the logits of this VisionTransformer are no averages"):
        predict.main([str(tmp_path / "vit/fold-0"), str(drawn / "test"), "--explain", str(tmp_path / "why")])


def test_a_folder_that_cannot_be_written_is_named(run, drawn, tmp_path):
    (tmp_path / "why").write_text("a file")
    with pytest.raises(UserError, match="--explain: cannot write"):
        predict.main([str(run / "fold-0"), str(drawn / "test"), "--explain", str(tmp_path / "why")])


def test_each_picture_s_id_gives_a_file_of_its_own_within_the_folder():
    ids = ["a/b.jpg", "a%2Fb.jpg", "../up.jpg", "a\\b.jpg", "x" * 300, "x" * 299 + "y", "a:b?.png"]
    names = [file_name(name) for name in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert "/" not in name and "\\" not in name and len(name.encode()) <= 255 and name.endswith(".png")
