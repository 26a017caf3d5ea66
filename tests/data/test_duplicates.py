"""Near-duplicates: copies changed a little are found, other images are not, and folds keep them together."""

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from creature.data import candidates, scan
from creature.data.candidates import find_candidates
from creature.data.duplicates import _stars, near_duplicates
from creature.data.likeness import SHAPE, Details, are_alike, detail
from creature.data.sketches import LENGTH, sketch
from creature.errors import UserError
from creature.samples import SPECIES, draw
from creature.species import Pen
from helpers import faults
from helpers.fold_files import folds_rows
from helpers.images import jpeg, photo
from helpers.runs import start

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "encoded again": lambda image: jpeg(image, 50),
    "mirrored": lambda image: jpeg(ImageOps.mirror(image), 70),
    "cropped": lambda image: image.crop((2, 1, image.width - 1, image.height - 2)),
    "brighter": lambda image: image.point([min(255, int(level * 1.1 + 5)) for level in range(256)] * 3),
    "cut off": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
}


def sketches(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.frombuffer(sketch(image), np.uint8) for image in images])


def details_of(images: list[Image.Image]) -> Details:
    def details(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [detail(images[row]) for row in rows]
        return np.stack([np.frombuffer(d, np.uint8).reshape(SHAPE) for d, _ in found]), np.array([s for _, s in found])

    return details


def firsts(images: list[Image.Image]) -> np.ndarray:
    """For each image the first one of those that look the same."""
    return near_duplicates(sketches(images), details_of(images)).first


def planted(originals: int, copies: int) -> tuple[list[Image.Image], set[tuple[int, int]]]:
    """Originals and changed copies of the first ones, and the pairs that there are."""
    images = [photo(seed) for seed in range(originals)]
    changes = list(CHANGES.values())
    changed = [changes[k % len(changes)](images[k]) for k in range(copies)]
    return images + changed, {(k, originals + k) for k in range(copies)}


def before_a_scene(count: int) -> list[Image.Image]:
    """Creatures before one and the same scene, every other one by night."""
    scene = draw("fish", np.random.default_rng(1), 128)
    images = []
    for number in range(count):
        rng = np.random.default_rng([2, number])
        image, side = scene.copy(), int(rng.integers(24, 48))
        frame = np.array([[side / 2, 0], [0, side / 2], rng.uniform(24, 104, 2)])
        body, trim, line = (tuple(rng.integers(0, 256, 3).tolist()) for _ in range(3))
        pen = Pen(ImageDraw.Draw(image), rng, frame, body, trim, line, edged=True)
        SPECIES[sorted(SPECIES)[number % len(SPECIES)]](pen)
        light = image.point([int(level * 0.4) for level in range(256)] * 3) if number % 2 else image
        images.append(light)
    return images


def of_a_camera(count: int) -> list[Image.Image]:
    """Frames of one camera, with noise, and things somewhere in them that are as light as the ground."""
    rng = np.random.default_rng(3)
    ground = Image.fromarray(rng.integers(60, 180, (12, 16, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )
    images = []
    for number in range(count):
        levels = np.asarray(ground) + rng.normal(0, 4, (120, 160, 3))
        x, y = rng.integers(0, 144), rng.integers(0, 108)
        levels[y : y + 12, x : x + 16] = rng.normal(0, 20, 3) + ((200, 100, 40), (150, 120, 90))[number % 2]
        images.append(jpeg(Image.fromarray(levels.clip(0, 255).astype(np.uint8)), 90))
    return images


def judge(actual: np.ndarray, pairs: set[tuple[int, int]]) -> tuple[float, float]:
    """Recall and precision."""
    pairs_found = {(int(first), row) for row, first in enumerate(actual) if first != row}
    return len(pairs_found & pairs) / len(pairs), len(pairs_found & pairs) / max(1, len(pairs_found))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change):
    images = [photo(seed) for seed in range(20)]
    actual = firsts([*images, CHANGES[change](images[7])])
    assert actual.tolist() == [*range(20), 7]


def test_planted_copies_are_found_and_nothing_else():
    recall, precision = judge(firsts((case := planted(1500, 150))[0]), case[1])
    assert recall >= 0.99 and precision >= 0.99


@pytest.mark.full
def test_copies_among_ten_thousand_pictures_are_found():
    recall, precision = judge(firsts((case := planted(9000, 1000))[0]), case[1])
    print(f"recall {recall:.4f}, precision {precision:.4f}")
    assert recall >= 0.99 and precision >= 0.99


def test_before_one_scene_copies_are_found_and_nothing_else():
    images = before_a_scene(120)
    changed = [change(images[k]) for k, change in enumerate([*CHANGES.values()] * 10)]
    recall, precision = judge(firsts([*images, *changed]), {(k, 120 + k) for k in range(len(changed))})
    assert recall >= 0.98 and precision >= 0.95


def test_in_frames_of_one_camera_copies_are_found_and_nothing_else():
    images = of_a_camera(150)
    changed = [change(images[k]) for k, change in enumerate([*CHANGES.values()] * 10)]
    recall, precision = judge(firsts([*images, *changed]), {(k, 150 + k) for k in range(len(changed))})
    assert recall >= 0.98 and precision >= 0.95


def test_drawn_copies_whose_colours_are_cut_off_are_found_and_nothing_else():
    images = [draw(sorted(SPECIES)[k % len(SPECIES)], np.random.default_rng(k), 64) for k in range(120)]
    changed = [CHANGES["cut off"](image) for image in images]
    recall, precision = judge(firsts([*images, *changed]), {(k, 120 + k) for k in range(120)})
    assert recall >= 0.99 and precision >= 0.99


def test_other_things_on_a_bright_ground_are_no_copies_where_one_is_brightened():
    """Red is cut off everywhere, and says nothing about what lies there; the other colours do."""
    images = []
    for number in range(8):
        image = Image.new("RGB", (128, 128), (210, 40, 110))
        _, green, blue = photo(number).split()
        image.paste(Image.merge("RGB", (Image.new("L", green.size, 210), green, blue)), (16, 16))
        images.append(CHANGES["cut off"](image) if number % 2 else image)
    pairs = np.array(list(combinations(range(8), 2)))
    assert not are_alike(pairs, np.zeros(len(pairs), bool), details_of(images)).any()


def test_a_crop_that_takes_a_frame_away_is_found():
    images = [ImageOps.expand(photo(seed).resize((192, 192)), 2, "white") for seed in range(20)]
    assert firsts([*images, images[7].crop((3, 3, 193, 193))]).tolist() == [*range(20), 7]


def test_of_tiny_images_only_equal_pixels_look_the_same():
    strokes = [np.random.default_rng(seed).integers(0, 17, (8, 8)) * 15 for seed in range(20)]
    strokes += [np.clip(strokes[3] + np.eye(8, dtype=int) * 20, 0, 255)]  # which differs as two drawings of a digit do
    tiny = [Image.fromarray(levels.astype(np.uint8)).convert("RGB") for levels in strokes]
    assert firsts([*tiny, tiny[5], ImageOps.mirror(tiny[6])]).tolist() == [*range(21), 5, 6]


def test_what_is_its_own_mirror_image_is_one_pair():
    half = photo(4).crop((0, 0, 48, 96))
    image = Image.new("RGB", (96, 96))
    image.paste(half, (0, 0))
    image.paste(ImageOps.mirror(half), (48, 0))
    images = [image, jpeg(image, 60)]
    assert near_duplicates(sketches(images), details_of(images)).pairs.tolist() == [[0, 1]]


def test_cells_lose_hardly_any_of_the_copies():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12_000, 5, 5), dtype=np.uint8)  # of so many, not all cells are compared
    images = [Image.fromarray(levels).resize((20, 20), Image.Resampling.BICUBIC) for levels in coarse]
    cropped = [image.crop((0, 1, 20, 20)) for image in images[:2000]]
    copies = [ImageOps.mirror(image) if k % 2 else image for k, image in enumerate(cropped)]
    found = set(map(tuple, find_candidates(sketches([*images, *copies])).pairs.tolist()))
    assert sum((k, 12_000 + k) in found for k in range(2000)) >= 1980


def test_of_a_scene_each_row_has_its_nearest_candidates_alone():
    rng = np.random.default_rng(0)
    scene = np.frombuffer(sketch(photo(1)), np.uint8).astype(int)
    crowd = np.clip(scene + rng.integers(-6, 7, (3000, LENGTH)), 0, 255).astype(np.uint8)
    crowd[-1] = np.clip(crowd[5].astype(int) + 3, 0, 255)
    pairs = find_candidates(crowd).pairs
    assert len(pairs) <= candidates.NEAREST * 3000 and [5, 2999] in pairs.tolist()


def test_what_hangs_together_only_through_others_is_not_one_group():
    wide = photo(5).resize((400, 300))
    windows = [wide.crop((shift, 0, shift + 280, 300)) for shift in range(0, 120, 8)]
    actual = firsts(windows)
    assert 1 < len(set(actual.tolist())) < len(windows)


def test_a_long_chain_is_parted_and_what_is_left_is_said(capsys):
    chain = np.stack([np.arange(40), np.arange(1, 41)], axis=1)
    rng = np.random.default_rng(0)

    def noise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # no two of which look the same
        return rng.integers(0, 256, (len(rows), *SHAPE)).astype(np.uint8), np.full(len(rows), 64)

    assert max(np.bincount(_stars(chain, 41, noise))) == 3
    assert "look like others, and hang together" in " ".join(capsys.readouterr().err.split())


def test_flat_pictures_are_no_copies_of_one_another():
    flat = [Image.new("RGB", (50, 40), (level, level, level)) for level in (0, 40, 41, 200, 255)]
    assert firsts([*flat, *flat]).tolist() == list(range(10))
    assert not len(find_candidates(np.zeros((0, LENGTH), np.uint8)).pairs)


def test_many_copies_of_one_picture_hang_together():
    image = photo(1)
    copies = [jpeg(image, quality) for quality in range(30, 96)]
    assert firsts([photo(2), *copies]).tolist() == [0] + [1] * len(copies)


def test_a_crowd_of_one_picture_is_not_compared_each_with_each(monkeypatch):
    crowd = np.repeat(sketches([photo(1), photo(2)]), 50_000, axis=0)
    compared = faults.note_calls(monkeypatch, candidates, "_search")
    pairs = find_candidates(crowd).pairs
    assert len(pairs) == 99_998 and set(pairs[:, 0].tolist()) == {0, 50_000}
    assert sum(len(call.args[0]) for call in compared) < 1000


def test_drawn_pictures_are_no_copies_of_one_another():
    images = [draw(sorted(SPECIES)[k % len(SPECIES)], np.random.default_rng(k), 64) for k in range(200)]
    assert firsts(images).tolist() == list(range(200))


def test_copies_are_in_one_fold_and_other_labels_are_warned_of(tiny: Path, tmp_path, capsys):
    classes = ("cat", "dog")
    for number in range(24):
        folder = tmp_path / "train" / classes[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photo(number).save(folder / f"{number}.png")
        if number < 12:
            jpeg(ImageOps.mirror(photo(number)), 80).save(folder / f"copy-{number}.png")
    jpeg(photo(3), 60).save(tmp_path / "train/cat/wrong.png")  # 3 is a dog
    words = (f"images.train=[{tmp_path}/train]", "schedule.epochs=1")
    assert start(tiny, tmp_path / "run", *words) == 0
    fold = {row[0]: row[2] for row in folds_rows(tmp_path / "run")}
    for number in range(12):
        folder = f"train/{classes[number % 2]}"
        assert fold[f"{folder}/{number}.png"] == fold[f"{folder}/copy-{number}.png"]
    assert fold["train/cat/wrong.png"] == fold["train/dog/3.png"]
    message = " ".join(capsys.readouterr().err.split())
    # The first of the three is the cat, and the dog and its mirrored copy look like it.
    assert "2 images may be copies of one with another label, such as one in cat and dog" in message


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_folds_are_the_same_from_the_index_and_with_a_cache(tiny: Path, tmp_path, cache, monkeypatch):
    folder = tmp_path / "train"
    for number in range(12):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        photo(number).save(folder / "ab"[number % 2] / f"{number}.png")
        CHANGES["half the size"](photo(number)).save(folder / "ab"[number % 2] / f"copy-{number}.png")
    monkeypatch.setattr(scan, "TICK", -(10**12))
    words = (f"images.train=[{folder}]", "schedule.epochs=1", f"images.cache={cache}")
    runs = [tmp_path / name for name in ("first", "second")]
    for out in runs:
        assert start(tiny, out, *words) == 0
        faults.forbid(monkeypatch, scan, "check_images")
    rows = [folds_rows(out) for out in runs]
    fold = {row[0]: row[2] for row in rows[0]}
    assert rows[0] == rows[1] and len(set(fold.values())) == 3
    assert all(fold[f"train/{'ab'[n % 2]}/{n}.png"] == fold[f"train/{'ab'[n % 2]}/copy-{n}.png"] for n in range(12))
    assert all(one != other for one, other in pairwise(sorted(fold)))


def test_a_holdout_that_looks_like_what_is_trained_on_is_warned_of(tiny: Path, drawn, tmp_path, capsys):
    pictures = [(path.parent.name, path) for path in sorted((drawn / "train").glob("*/*.jpg"))[::6]]
    for number, (label, path) in enumerate(pictures):
        (held := tmp_path / "held" / label).mkdir(parents=True, exist_ok=True)
        if number < 3:
            (held / f"{number}.jpg").write_bytes(path.read_bytes())
        else:
            ImageOps.mirror(Image.open(path)).save(held / f"{number}.jpg", quality=80)
    words = ("folds.train=[0]", "schedule.epochs=1")
    start(tiny, tmp_path / "run", f"images.holdout=[{tmp_path / 'held'}]", *words)
    message = " ".join(capsys.readouterr().err.split())
    assert f"images.holdout: 3 of its {len(pictures)} images are trained on, too, and will not be scored" in message
    assert f"images.holdout: {len(pictures) - 3} of its {len(pictures)} images look the same as one" in message
    with pytest.raises(UserError, match=r"images\.holdout: no such folder"):
        start(tiny, tmp_path / "other", f"images.holdout=[{tmp_path / 'none'}]", *words)
    start(tiny, tmp_path / "clean", *words)
    assert "images.holdout" not in capsys.readouterr().err
