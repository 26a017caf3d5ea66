"""What a network sees: the evaluation view is timm's own, training views and mixes are the seed's alone."""

import io
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image, ImageDraw
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torchvision.transforms import v2

from creature.data.augment import exact_transform, make_mix, training_augmentation
from creature.data.decode import Decoded, Encoded, decode
from creature.data.eval_transform import EvalTransform
from creature.data.normalize import Normalize
from creature.recipe import Augment
from creature.training.backbone import timm_config
from helpers import faults

MEAN, STD = (0.3, 0.5, 0.7), (0.2, 0.25, 0.3)
NOISE = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(NOISE[:height, :width])


def augment(**settings) -> Augment:
    return Augment.model_validate(settings, strict=False)


# Evaluation


@pytest.mark.parametrize("fit", ["squash", "center", "border"])
@pytest.mark.parametrize(("width", "height"), [(61, 40), (40, 61), (32, 32), (7, 20), (1, 1)])
def test_the_evaluation_view_is_the_one_that_timm_makes_of_the_config(fit, width, height):
    model = timm.create_model("test_resnet", num_classes=2)
    config = timm_config(model, ("a", "b"), EvalTransform(32, fit, MEAN), std=STD)
    data = resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
    ours = torch.from_numpy(EvalTransform(32, fit, MEAN)(picture(width, height)))
    assert ours.dtype == torch.uint8 and ours.shape == (3, 32, 32)
    theirs: Any = create_transform(**data, normalize=False)
    assert torch.equal(ours, theirs(picture(width, height)))
    normalized = Normalize(MEAN, STD)(ours[None])[0]
    theirs = create_transform(**data)
    torch.testing.assert_close(normalized, theirs(picture(width, height)), atol=1e-5, rtol=1e-5)


def test_squash_keeps_all_center_crops_and_border_pads_with_the_mean():
    wide = Image.new("RGB", (64, 32), "white")
    wide.paste("black", (0, 0, 16, 32))
    squash, center, border = (EvalTransform(32, fit, MEAN)(wide) for fit in ("squash", "center", "border"))
    assert squash[:, 16, 2].tolist() == [0] * 3 and squash[:, 16, 30].tolist() == [255] * 3
    assert center.min() == 255
    assert border[:, 0, 0].tolist() == border[:, -1, -1].tolist() == [round(255 * m) for m in MEAN]
    assert border[:, 16, 2].tolist() == [0] * 3


def test_the_evaluation_view_draws_nothing_at_random():
    view, before = EvalTransform(32, "border", MEAN), torch.get_rng_state()
    assert np.array_equal(view(picture(61, 40)), view(picture(61, 40)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "view",
    [
        exact_transform(EvalTransform(32, "squash", MEAN)),
        training_augmentation(32, augment(policy="rand_augment", random_erasing=1.0)),
    ],
)
def test_a_view_reaches_workers_that_are_spawned(view):
    copy = pickle.loads(pickle.dumps(view))
    assert np.array_equal(seen(copy, 0), seen(view, 0))


# Training


POLICIES = ["none", "rand_augment", "trivial_augment", "augmix", "three_augment"]


def seen(view, seed: int, image: Image.Image | None = None) -> torch.Tensor:
    pixels = np.asarray(image or picture(61, 40))
    return view(Decoded((pixels.shape[1], pixels.shape[0]), pixels), seed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rotation", [0.0, 30.0])
@pytest.mark.parametrize("erasing", [0.0, 1.0])
def test_every_training_view_gives_pixels_that_the_seed_alone_decides(policy, rotation, erasing):
    view = training_augmentation(24, augment(policy=policy, rotation=rotation, random_erasing=erasing))
    for seed in range(8):
        pixels = seen(view, seed)
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, 24, 24)
        assert torch.equal(pixels, seen(view, seed))
    assert len({seen(view, seed).numpy().tobytes() for seed in range(8)}) == 8


@pytest.mark.parametrize("size", [(1, 1), (3, 80), (80, 3)])
@pytest.mark.parametrize("policy", POLICIES)
def test_small_and_narrow_pictures_have_a_view(size, policy):
    view = training_augmentation(24, augment(policy=policy, rotation=10.0, random_erasing=1.0))
    for seed in range(20):
        assert seen(view, seed, picture(*size)).shape == (3, 24, 24)


def whole(**settings) -> torch.Tensor:
    """One view without a random crop."""
    view = training_augmentation(32, augment(crop_scale=(1.0, 1.0), **settings))
    return seen(view, 0, picture(32, 32))


def test_flip_is_a_mirror_and_its_probability_is_kept():
    upright = torch.from_numpy(NOISE[:32, :32].copy()).permute(2, 0, 1)
    assert torch.equal(whole(flip=0.0), upright)
    assert torch.equal(whole(flip=1.0), upright.flip(2))


def test_a_vertical_flip_turns_upside_down():
    upright = whole(flip=0.0)
    assert torch.equal(whole(flip=0.0, vertical_flip=1.0), upright.flip(1))
    assert torch.equal(whole(flip=1.0, vertical_flip=1.0), upright.flip(1, 2))
    view = training_augmentation(24, augment(flip=0.0, vertical_flip=1.0))
    plain = training_augmentation(24, augment(flip=0.0))
    assert any(not torch.equal(seen(view, seed), seen(plain, seed).flip(1)) for seed in range(8))  # a crop of its own


def test_colours_are_changed_and_nothing_else():
    plain = whole(flip=0.0).float()
    for settings, limit in (({"color_jitter": 0.1}, 0.5), ({"color_jitter": 0.5}, 0.99)):
        changed = whole(flip=0.0, **settings).float()
        alike = torch.corrcoef(torch.stack([plain.mean(0).ravel(), changed.mean(0).ravel()]))[0, 1]
        assert not torch.equal(changed, plain) and alike > 0.9 and (changed - plain).abs().max() <= 255 * limit
    turned = training_augmentation(32, augment(color_jitter=0.5, rotation=10.0))
    assert not torch.equal(seen(turned, 3), seen(training_augmentation(32, augment(rotation=10.0)), 3))


def test_three_augment_is_grey_or_solarized_or_blurred():
    """Of one picture, one of the three for each seed: equal colours, bright levels turned over, or less contrast."""
    upright, kinds = picture(32, 32), set()
    plain = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    for seed in range(30):
        pixels = seen(
            training_augmentation(32, augment(crop_scale=(1.0, 1.0), flip=0.0, policy="three_augment")), seed, upright
        )
        if torch.equal(pixels, pixels[:1].expand(3, -1, -1)):
            kinds.add("grey")
        elif torch.equal(pixels, torch.where(plain >= 128, 255 - plain, plain)):
            kinds.add("solarized")
        elif pixels.float().std() < plain.float().std():
            kinds.add("blurred")
    assert kinds == {"grey", "solarized", "blurred"}


def test_erasing_blackens_one_rectangle():
    erased = whole(flip=0.0, random_erasing=1.0) != whole(flip=0.0)
    rows, columns = erased.any(0).any(1).nonzero(), erased.any(0).any(0).nonzero()
    box = (slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    assert whole(flip=0.0, random_erasing=1.0)[box].max() == 0 and erased.sum() <= erased[box].numel() < erased.numel()


def test_rotation_and_policy_change_what_is_seen():
    plain = whole(flip=0.0)
    for settings in ({"rotation": 45.0}, {"policy": "rand_augment"}):
        view = training_augmentation(32, augment(crop_scale=(1.0, 1.0), flip=0.0, **settings))
        assert any(not torch.equal(seen(view, seed, picture(32, 32)), plain) for seed in range(10))


def test_a_crop_keeps_the_share_of_the_area_that_was_asked_for():
    ramp = Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2))
    for scale, low, high in (((0.04, 0.06), 30, 60), ((0.9, 1.0), 150, 200)):
        view = training_augmentation(32, augment(crop_scale=scale, flip=0.0))
        for seed in range(10):
            pixels = seen(view, seed, ramp).int()
            assert low < pixels.max() - pixels.min() + 5 < high + 5


def photo(width: int, height: int, **options) -> bytes:
    """A JPEG of soft colours with one sharp edge, as photographs are."""
    image = Image.fromarray(NOISE[:6, :8]).resize((width, height), Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), "orange", "navy", 9)
    image.save(file := io.BytesIO(), "JPEG", quality=90, **options)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6


@pytest.mark.parametrize(
    "data", [photo(90, 70), photo(900, 700), photo(896, 704, exif=TURNED), photo(900, 700, exif=TURNED)]
)
@pytest.mark.parametrize("erasing", [0.0, 0.5])
def test_a_crop_is_what_the_steps_make_of_the_whole_picture(data, erasing):
    """Same draws, and pixels that differ by rounding; by less than a grey level where less was decoded."""
    settings = augment(random_erasing=erasing)
    view = training_augmentation(64, settings)
    steps = v2.Compose(
        [
            v2.RandomHorizontalFlip(settings.flip),
            v2.RandomResizedCrop(64, scale=settings.crop_scale),
            v2.PILToTensor(),
            v2.RandomErasing(erasing),
        ]
    )
    whole = decode(data)
    for seed in range(40):
        torch.manual_seed(seed)
        expected = steps(whole).int()
        actual = view(Encoded(data), seed).int()
        assert (actual - expected).abs().float().mean() <= 1
        if max(whole.size) < 128:  # nothing is decoded smaller
            assert (actual - expected).abs().max() <= 1


def test_a_large_jpeg_is_decoded_in_no_higher_resolution_than_its_crop_needs(monkeypatch):
    crops, whole = (faults.note_calls(monkeypatch, Encoded, name) for name in ("pixels", "image"))
    training_augmentation(64, augment(crop_scale=(1.0, 1.0)))(Encoded(photo(900, 700)), 0)
    training_augmentation(64, augment(crop_scale=(1.0, 1.0)))(Encoded(photo(260, 140)), 0)
    training_augmentation(64, augment(crop_scale=(1.0, 1.0), rotation=5))(Encoded(photo(900, 700)), 0)
    assert [call.args[1] for call in crops] == [8, 2] and len(whole) == 1


# Mixing


def mixed(name: str, count: int, seed: int, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch in which image i has the value i everywhere, and the label i."""
    pixels = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 3, 16, 16).clone()
    torch.manual_seed(seed)
    mix = make_mix(augment(mix=name, **settings), count)
    assert mix
    return mix(pixels, torch.eye(count))


MIXES = ["mixup", "cutmix", "mixup_or_cutmix"]


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_labels_are_mixed_as_the_pixels_are(name, count):
    for seed in range(10):
        pixels, targets = mixed(name, count, seed)
        assert pixels.shape == (count, 3, 16, 16) and targets.shape == (count, count)
        torch.testing.assert_close(targets.sum(1), torch.ones(count))
        assert targets.min() >= 0
        torch.testing.assert_close(pixels.mean((1, 2, 3)), targets @ torch.arange(count, dtype=torch.float32))


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_is_the_seed_s_alone(name):
    for seed in range(5):
        for one, other in zip(mixed(name, 5, seed), mixed(name, 5, seed), strict=True):
            assert torch.equal(one, other)
    assert len({mixed(name, 5, seed)[1].numpy().tobytes() for seed in range(5)}) > 1


def test_mixup_blends_and_cutmix_pastes():
    for seed in range(10):
        assert all(len(picture.unique()) == 1 for picture in mixed("mixup", 4, seed)[0])
        assert set(mixed("cutmix", 4, seed)[0].unique().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_either_mix_is_sometimes_one_and_sometimes_the_other():
    whole_numbers = {bool((mixed("mixup_or_cutmix", 4, seed)[0] % 1 == 0).all()) for seed in range(30)}
    assert whole_numbers == {True, False}


def test_alpha_sets_how_far_pictures_are_mixed():
    def strength(alpha: float) -> float:
        largest = [mixed("mixup", 2, seed, mix_alpha=alpha)[1].max(1).values.mean() for seed in range(50)]
        return float(1 - torch.stack(largest).mean())

    for small, large in itertools.pairwise((0.05, 1.0, 50.0)):
        assert strength(small) < strength(large)


@pytest.mark.parametrize("name", MIXES)
def test_a_batch_is_mixed_with_the_probability_that_is_asked_for(name):
    clean = sum(bool((mixed(name, 8, seed, mix_probability=0.5)[1].max(1).values == 1).all()) for seed in range(200))
    assert 70 < clean < 130


def test_no_mix_is_none():
    assert make_mix(augment(mix="none"), 3) is None
