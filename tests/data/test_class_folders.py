"""Class folders that are not what was meant are named."""

import numpy as np
from PIL import Image

from creature.data import describe
from creature.data.class_folders import mixed_depths, rare_classes
from helpers.runs import start


def test_folders_of_folders_beside_class_folders_are_named():
    paths = ["fox/a.png", "fox/b.png", "birds/owl/a.png", "birds/wren/b.png"]
    (line,) = mixed_depths("data", paths)
    assert line.startswith("data/birds holds 2 folders (owl, wren) and no image, where other classes hold images")
    assert mixed_depths("data", [f"{path}/x.png" for path in ("fox/day", "fox/night", "owl/day", "owl/night")]) == []
    assert mixed_depths("data", ["fox/a.png", "owl/b.png", "owl/night/c.png", "newt/day/d.png"]) == []


def test_a_class_with_two_images_among_thousands_is_named():
    assert rare_classes({"fox": 1500, "owl": 1400, "tmp": 2}) == {
        "tmp": "tmp has 2 of 2902 images, where the mean class has 967; add images of it, or leave it out if it is no "
        "class"
    }
    assert rare_classes({"fox": 250, "owl": 12}) == rare_classes({"a": 9, "b": 1, "c": 8}) == rare_classes({}) == {}


def test_training_and_inspect_name_such_folders(tiny, tmp_path, capsys):
    random = np.random.default_rng(0)
    for folder, count in {"fox": 60, "birds/owl": 4, "birds/wren": 4, "tmp": 1}.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{number}.png")
    describe.main([str(tmp_path / "data")])
    inspected = capsys.readouterr()
    start(tiny, tmp_path / "run", f"images.train=[{tmp_path / 'data'}]", "folds.train=[0]", "schedule.epochs=1")
    for shown in (inspected.err + inspected.out, capsys.readouterr().err):
        text = " ".join(shown.split())
        assert "birds holds 2 folders (owl, wren) and no image" in text
        assert "tmp has 1 of 69 images, where the mean class has 23; add images of it" in text
    assert "suggested: folds.count=5" in inspected.out  # as fox and birds allow
