"""What an ensemble said, kept and scored: on new images, and never on those that a member was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from creature.data.folds import FoldTable, write_folds
from creature.ensembling.recorded import Recorder, exposures, read_truth, tally
from creature.errors import BrokenError, UserError
from creature.inference.predictor import LogitsBatch
from creature.member_folds import find_members
from creature.metrics.accuracy import Count
from creature.metrics.blend import Blending
from creature.metrics.recorded import RecordedPredictions, load_recorded, save_recorded
from creature.results import Accuracy
from creature.run import Fold

NAMES = ("red", "green", "blue")
CONTENTS = {"zero": "0" * 32, "one": "1" * 32, "both": "2" * 32, "new": "f" * 32}


def a_run(folder: Path, selected: bool = False) -> list[Fold]:
    """Two folds: content `zero` is held out of fold 0, `one` of fold 1, and `both` were trained on it."""
    rows = {"zero": 0, "one": 1, "both": -1}
    folder.mkdir(parents=True)
    folds = FoldTable(
        count=2,
        seed=0,
        class_names=NAMES,
        fingerprint="",
        ids=tuple(rows),
        labels=np.zeros(3, dtype=np.int64),
        partitions=(np.array(list(rows.values())),),
        hashes=tuple(CONTENTS[name] for name in rows),
        bad={},
    )
    write_folds(folder, folds)
    for k in range(2):
        (fold := folder / f"fold-{k}").mkdir()
        score = {"correct": 1, "n": 2}
        result = {"fold": k, "selected": selected, "epoch": 1, "last": score, "class_counts": [3], **score}
        result |= {"parameters": 7, "seconds": 1.0, "folds": "", "sha256": {"model.safetensors": ""}}
        (fold / "result.json").write_text(json.dumps(result))
    return find_members([folder])


def table(*rows: tuple[str, str, str]) -> RecordedPredictions:
    """Images as (content, label, what all deciders say)."""
    index = {name: k for k, name in enumerate(NAMES)} | {"": -1}
    message = np.array([index[message] for _, _, message in rows])
    return RecordedPredictions(
        ids=tuple(f"image {row}" for row in range(len(rows))),
        content_hashes=tuple(CONTENTS.get(content, "") for content, _, _ in rows),
        labels=np.array([index[label] for _, label, _ in rows]),
        predicted={"logits": message, "softmax": message, "vote": message, "fold-0": message},
        strategy="logits",
        class_names=NAMES,
    )


def scores(recorded: RecordedPredictions, members: list[Fold]) -> dict[str, Accuracy | int]:
    return tally(recorded, exposures(recorded, members)).result


def test_new_pictures_are_scored(tmp_path):
    recorded = table(("new", "red", "red"), ("new", "blue", "red"), ("new", "blue", "blue"))
    members = a_run(tmp_path / "run")
    assert tally(recorded, exposures(recorded, members)).lines("test") == [("test", str(Count(2, 3)))]
    assert scores(recorded, members) == {"unseen": Accuracy.of(Count(2, 3)), "seen": 0, "unlabelled": 0, "unread": 0}


@pytest.mark.parametrize("content", ["zero", "one", "both"])
def test_a_picture_that_any_member_was_trained_on_has_no_accuracy(tmp_path, content):
    recorded, members = table((content, "red", "red")), a_run(tmp_path / "run")
    ((title, message),) = tally(recorded, exposures(recorded, members)).lines("test")
    assert "1 images" in title and message == "seen"
    assert not any(character.isdigit() for character in message)
    assert scores(recorded, members) == {"seen": 1, "unlabelled": 0, "unread": 0}


def test_a_picture_that_the_only_member_held_out_is_new_to_it(tmp_path):
    recorded = table(("zero", "red", "red"), ("one", "red", "red"))
    actual = scores(recorded, a_run(tmp_path / "run")[:1])
    assert actual == {"unseen": Accuracy.of(Count(1, 1)), "seen": 1, "unlabelled": 0, "unread": 0}


def test_a_picture_that_an_epoch_was_selected_on_is_marked(tmp_path):
    recorded = table(("zero", "blue", "red"), ("new", "red", "red"))
    stands = exposures(recorded, a_run(tmp_path / "run", selected=True)[:1])
    lines = tally(recorded, stands).lines("test")
    assert lines == [("test", str(Count(1, 1))), ("test", f"{Count(0, 1)} selected")]


def test_a_picture_of_one_run_is_seen_where_another_run_trained_on_it(tmp_path):
    first, second = a_run(tmp_path / "first"), a_run(tmp_path / "second")
    actual = scores(table(("zero", "red", "red")), [first[0], second[1]])
    assert actual["seen"] == 1 and "unseen" not in actual


def test_pictures_without_a_label_or_that_cannot_be_read_are_counted_apart(tmp_path):
    recorded = table(("new", "", "red"), ("unread", "red", "red"), ("new", "red", "red"))
    stands = exposures(recorded, a_run(tmp_path / "run"))
    actual = tally(recorded, stands)
    assert actual.result == {"unseen": Accuracy.of(Count(1, 1)), "seen": 0, "unlabelled": 1, "unread": 1}
    assert [message for _, message in actual.lines("test")] == [str(Count(1, 1)), "not scored", "not scored"]


def test_a_record_holds_what_each_decider_said(tmp_path):
    """Two members on two images; of one, only a wide margin makes the sure member win the mean of logits."""
    logits = np.array([[[9.0, 0, 0], [1.0, 0, 0]], [[0, 1.0, 0], [0, 3.0, 0]]], dtype=np.float32)
    record = Recorder(a_run(tmp_path / "run"), Blending(np.ones(2), "softmax"))
    batch = LogitsBatch([str(k) for k in range(2)], [CONTENTS["new"], ""], {1: "empty file"}, logits=logits)
    assert list(record.watch([batch])) == [batch]
    actual = record.recorded(("a", "b"), np.array([0, 1]))
    assert {name: message.tolist() for name, message in actual.predicted.items()} == {
        "logits": [0, 1],
        "softmax": [0, 1],
        "vote": [0, 1],
        "fold-0": [0, 0],
        "fold-1": [1, 1],
    }
    assert actual.content_hashes == (CONTENTS["new"], "") and actual.strategy == "softmax"


def test_saved_answers_are_read_back(tmp_path):
    recorded = table(("new", "red", "blue"), ("unread", "", "red"))
    save_recorded(tmp_path / "some/images.safetensors", recorded)
    actual = load_recorded(tmp_path / "some/images.safetensors")
    assert (actual.ids, actual.content_hashes, actual.strategy, actual.class_names) == (
        recorded.ids,
        recorded.content_hashes,
        recorded.strategy,
        recorded.class_names,
    )
    assert actual.members == ["fold-0"]
    np.testing.assert_array_equal(actual.labels, recorded.labels)
    for name, message in recorded.predicted.items():
        np.testing.assert_array_equal(actual.predicted[name], message)


@pytest.mark.parametrize("damage", ["cut", "no metadata", "short column"])
def test_damaged_answers_are_refused_in_one_sentence(tmp_path, damage):
    path = tmp_path / "images.safetensors"
    save_recorded(path, table(("new", "red", "blue"), ("new", "red", "blue")))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        tensors = load_file(path)
        words = {"deciders": '["logits"]', "names": "[]", "strategy": '"logits"'}
        short = {"labels": tensors["labels"][:1], "decisions": tensors["decisions"][:1]}
        save_file(tensors | short, path, metadata=None if damage == "no metadata" else words)
    with pytest.raises(BrokenError, match=r"images.safetensors: cannot be read .*; run creature ensemble"):
        load_recorded(path)


def test_truth_is_matched_by_name_and_its_labels_are_checked(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image_name,label\na,red\nb.jpg,blue\n")
    assert read_truth(str(path), ("a.jpg", "b.jpg", "c.jpg"), NAMES).tolist() == [0, 2, -1]
    with pytest.raises(UserError, match="names none of the images; its first is a"):
        read_truth(str(path), ("x.jpg",), NAMES)
    path.write_text("image_name,label\na,purple\n")
    with pytest.raises(UserError, match="no class of the model: purple"):
        read_truth(str(path), ("a.jpg",), NAMES)
