"""Training views that are cut out of copies in the device's memory, beside those that workers cut out of the same."""

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from creature.data.augment import AffineAugmentation, training_augmentation
from creature.data.decode import Decoded
from creature.data.device_images import cut_views
from creature.errors import Interrupted, UserError
from creature.recipe import Augment
from helpers import faults
from helpers.runs import losses, start, weights_hash

SIZE = (300, 200)


def augmentation(**settings: object) -> AffineAugmentation:
    augment = training_augmentation(64, Augment.model_validate(settings))
    assert isinstance(augment, AffineAugmentation)
    return augment


def copy_of(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def on_device(copy: np.ndarray, augment: AffineAugmentation, seeds: range) -> torch.Tensor:
    copies = torch.from_numpy(copy.copy()).permute(2, 0, 1).expand(len(seeds), -1, -1, -1)
    return cut_views(copies, [augment.draw(*SIZE, seed) for seed in seeds], augment).float()


@pytest.mark.parametrize("settings", [{}, {"crop_scale": (0.6, 1.0)}, {"flip": 1.0}, {"random_erasing": 1.0}])
def test_views_are_those_that_workers_cut_out_of_the_same_copy(settings):
    augment, seeds = augmentation(**settings), range(40)
    image = Image.effect_noise(SIZE, 60).convert("RGB").resize((40, 30)).resize(SIZE, Image.Resampling.BICUBIC)
    copy = copy_of(image, 73)
    expected = torch.stack([augment(Decoded(SIZE, copy), seed) for seed in seeds]).float()
    difference = (on_device(copy, augment, seeds) - expected).abs().mean((1, 2, 3))
    assert difference.mean() <= 1 and difference.max() <= 3


def test_small_views_of_an_early_epoch_are_not_aliased():
    augment, seeds = augmentation(crop_scale=(0.9, 1.0)), range(20)
    copy = copy_of(Image.effect_noise(SIZE, 60).convert("RGB"), 4 * 73)
    expected = torch.stack([augment(Decoded(SIZE, copy), seed) for seed in seeds]).float()
    views = on_device(copy, augment, seeds)
    assert float(views.std()) == pytest.approx(float(expected.std()), rel=0.25)
    assert (views - expected).abs().mean() <= 5


def test_rotation_crop_and_flip_are_those_of_the_whole_picture():
    x, y = np.meshgrid(np.linspace(20, 235, SIZE[0]), np.linspace(20, 235, SIZE[1]))
    image = Image.fromarray(np.stack([x, y, (x + y) / 2], 2).astype(np.uint8))  # smooth: resampling hides nothing
    augment, seeds = augmentation(rotation=40.0, vertical_flip=0.5), range(30)
    expected = torch.stack([augment(Decoded(SIZE, np.asarray(image)), seed) for seed in seeds]).float()
    views = on_device(copy_of(image, 73), augment, seeds)
    inside = (views > 20) & (expected > 20)  # beside the rotated picture's sharp edge
    assert (views - expected).abs()[inside].mean() <= 1
    assert ((views > 0) == (expected > 0)).float().mean() > 0.98 and inside.float().mean() > 0.7
    views = [augment.draw(*SIZE, seed) for seed in seeds]
    assert len({(view.mirrored, view.upside_down) for view in views}) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_batch_waits_for_the_gpu():
    augment = augmentation(rotation=10.0, random_erasing=0.5)
    copies = torch.zeros((8, 3, 73, 73), dtype=torch.uint8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        cut_views(copies, [augment.draw(*SIZE, seed) for seed in range(8)], augment)
    finally:
        torch.cuda.set_sync_debug_mode("default")


DEVICE = ("folds.train=[0]", "images.cache=device", "augment.rotation=10", "augment.random_erasing=0.3")


def test_a_run_needs_no_workers_and_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, capsys):
    children = []
    faults.before_steps(monkeypatch, lambda step: children.append(len(psutil.Process().children(recursive=True))))
    before = len(psutil.Process().children(recursive=True))
    start(tiny, tmp_path / "run", *DEVICE, "images.workers=2")
    assert set(children) == {before} and "no workers start" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        faults.ask_at_step(patch, 2, stop=True)
        with pytest.raises(Interrupted):
            start(tiny, tmp_path / "resumed", *DEVICE)
    start(tiny, tmp_path / "resumed", *DEVICE, resume=True)
    assert weights_hash(tmp_path / "resumed/fold-0") == weights_hash(tmp_path / "run/fold-0")


def test_without_random_views_a_run_is_close_to_one_by_workers(tiny, tmp_path):
    plain = ("folds.train=[0]", "augment.crop_scale=[1.0, 1.0]", "augment.flip=0", "schedule.epochs=1")
    start(tiny, tmp_path / "device", *plain, "images.cache=device")
    start(tiny, tmp_path / "disk", *plain, "images.cache=disk")
    np.testing.assert_allclose(losses(tmp_path / "device/fold-0"), losses(tmp_path / "disk/fold-0"), rtol=0.05)


@pytest.mark.parametrize("setting", ["policy=rand_augment", "policy=three_augment", "color_jitter=0.2"])
def test_what_is_no_affine_map_is_refused(tiny, tmp_path, setting):
    named = setting.replace("=", " ")
    with pytest.raises(UserError, match=rf"images.cache: device crops, flips and rotates alone, got augment\.{named};"):
        start(tiny, tmp_path / "run", *DEVICE, f"augment.{setting}")


def test_held_out_rows_are_seen_exactly(tiny, tmp_path, monkeypatch):
    from creature.data import device_images

    views = []
    load = device_images._load

    def noting(images, side, device):
        sizes, pixels = load(images, side, device)
        views.append((images, pixels))
        return sizes, pixels

    monkeypatch.setattr(device_images, "_load", noting)
    start(tiny, tmp_path / "run", "folds.train=[0]", "images.cache=device", "schedule.epochs=1")
    _, copies = views[0]
    assert copies.shape[2:] == (32, 32)  # as the images are: enlarged copies would be blurred
    images, pixels = views[1]
    rows = [(row, 0) for row in range(len(images.dataset))]
    torch.testing.assert_close(pixels, images.__getitems__(rows).pixels, rtol=0, atol=0)
