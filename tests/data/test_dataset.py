"""The manifest's promises: which images become rows, with which ids, classes and groups, and what is refused."""

import os
import random
import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, List, Value
from datasets import Image as ImageFeature

from creature.data import files, scan
from creature.data.arrow_tables import write_table
from creature.data.dataset import fingerprint
from creature.data.decode import content_hash, decode, read
from creature.data.files import file_id, file_image, list_images, names_of, natural_key, read_labels, walk_files
from creature.data.scan import check_images, refuse_bad
from creature.errors import UserError
from creature.inference.inputs import find_shards
from helpers import faults
from helpers.memory import holding
from helpers.tables import fill, images, parquet, picture, table, write_csv

pytestmark = pytest.mark.usefixtures("hub_cache")
ODD = os.fsdecode(b"caf\xe9.png")  # Latin-1, so no UTF-8


EMBEDDED = {"bytes": picture(), "path": None}


def refusal(*sources: str | Path, names: list[str] | None = None, **columns: Any) -> str:
    with pytest.raises(UserError) as caught:
        images(*sources, names=names, **columns)
    return str(caught.value)


def labelled(dataset: Dataset) -> dict[str, str]:
    names = dataset.features["label"].names
    return {name: names[label] for name, label in zip(dataset["id"], dataset["label"], strict=True)}


def pixels(dataset: Dataset, row: int) -> np.ndarray:
    return np.asarray(decode(read(dataset[row]["image"])))


def test_class_folders_become_rows_with_their_pictures(tmp_path):
    actual = images(fill(tmp_path / "pets", "cat/1.png", "cat/more/2.png", "dog/1.png"))
    assert labelled(actual) == {"pets/cat/1.png": "cat", "pets/cat/more/2.png": "cat", "pets/dog/1.png": "dog"}
    assert (set(actual["group"]), set(actual["source"])) == ({""}, {0})
    assert [pixels(actual, row)[0, 0, 0] for row in range(3)] == [0, 1, 2]


def test_several_sources_are_pooled_and_numbered(tmp_path):
    one, two = fill(tmp_path / "one", "a/1.png", "b/1.png"), fill(tmp_path / "two", "a/1.png", "b/2.png")
    actual = images(two, one)
    assert labelled(actual) == {"one/a/1.png": "a", "one/b/1.png": "b", "two/a/1.png": "a", "two/b/2.png": "b"}
    assert list(actual["source"]) == [1, 1, 0, 0]


def test_classes_are_in_natural_order(tmp_path):
    names = ["0", "1", "2", "003", "10", "11", "a9", "a10", "b"]
    folder = fill(tmp_path / "x", *(f"{name}/1.png" for name in sorted(names)))
    assert images(folder).features["label"].names == names


@pytest.mark.parametrize(
    "names",
    [["1", "01", "2", "002"], ["²", "a1²", "a1", "٣"], ["9" * 5000, "1" + "0" * 5000], ["", "1", "a", "a1", "a1b"]],
)
def test_natural_order_is_total_and_no_name_breaks_it(names):
    assert len({natural_key(name) for name in names}) == len(names)
    assert sorted(names, key=natural_key) == sorted(reversed(names), key=natural_key)


def test_a_class_that_the_training_data_lacks_is_refused_by_name(tmp_path):
    folder = fill(tmp_path / "x", "cat/1.png", "dog/1.png", "owl/1.png")
    assert "x has classes that the training data lacks: dog, owl" in refusal(folder, names=["cat"])


def test_a_class_that_a_source_lacks_is_refused_by_name(tmp_path):
    one, two = fill(tmp_path / "one", "cat/1.png", "dog/1.png"), fill(tmp_path / "two", "cat/1.png")
    message = refusal(one, two)
    assert message.startswith(f"images.train: {two} lacks the classes dog; ")


def test_an_empty_folder_stands_for_a_class_without_pictures(tmp_path):
    one, two = fill(tmp_path / "one", "cat/1.png", "dog/1.png"), fill(tmp_path / "two", "cat/1.png", "dog/")
    assert images(one, two).features["label"].names == ["cat", "dog"]


def test_many_classes_are_cut_in_the_message(tmp_path):
    message = refusal(fill(tmp_path / "x", *(f"{i}/1.png" for i in range(12)), "new/1.png"), names=["new"])
    assert message.endswith("0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")


def test_given_names_keep_their_order(tmp_path):
    actual = images(fill(tmp_path / "x", "a/1.png", "b/1.png"), names=["b", "a"])
    assert (actual.features["label"].names, list(actual["label"])) == (["b", "a"], [1, 0])


def test_a_picture_beside_class_folders_is_refused_by_name(tmp_path):
    message = refusal(fill(tmp_path / "x", "cat/1.png", "stray.png"))
    assert "must hold one folder per class, but stray.png lies beside them (1 such)" in message


def test_missing_and_empty_sources_are_refused(tmp_path):
    fill(tmp_path / "x", "cat/")
    assert f"images.train: no such folder: {tmp_path / 'none'}" in refusal(tmp_path / "none")
    assert f"images.train: {tmp_path / 'x'} holds no images" in refusal(tmp_path / "x")
    assert f"images.train: no such file: {tmp_path / 'none.parquet'}" in refusal(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    "header", ["image,label", "image_name,pred_label", "file,kind", "image,note,label", "image,note,pred_label"]
)
@pytest.mark.parametrize("ending", ["", ".png"])
def test_a_flat_folder_gets_its_labels_from_a_csv(tmp_path, header, ending):
    folder = fill(tmp_path / "flat", "1.png", "sub/2.png")
    note = "x," if "note" in header else ""
    labels = write_csv(tmp_path / "labels.csv", header, f"1{ending},{note}owl", f"sub/2{ending},{note}cat")
    assert labelled(images(folder, labels_csv=labels)) == {"flat/1.png": "owl", "flat/sub/2.png": "cat"}


def test_the_label_column_is_the_one_that_the_recipe_names(tmp_path):
    folder = fill(tmp_path / "flat", "1.png", "2.png")
    labels = write_csv(tmp_path / "labels.csv", "image,label,breed", "1.png,cat,manx", "2.png,cat,persian")
    assert set(labelled(images(folder, labels_csv=labels, label_column="breed")).values()) == {"manx", "persian"}


@pytest.mark.parametrize("lines", [["1.png,cat"], ["1.png,cat", "2.png,"]])
def test_a_picture_without_a_label_is_refused_by_name(tmp_path, lines):
    folder = fill(tmp_path / "flat", "1.png", "2.png", "3.png")
    labels = write_csv(tmp_path / "labels.csv", "image,label", *lines)
    assert f"images.labels: {labels} has no label for 2.png (2 such)" in refusal(folder, labels_csv=labels)


def test_a_picture_without_a_label_shows_how_the_csv_spells_names(tmp_path):
    labels = write_csv(tmp_path / "labels.csv", "image,label", "train/1.png,cat")
    message = refusal(fill(tmp_path / "flat", "1.png"), labels_csv=labels)
    assert "no label for 1.png" in message and "its first line is that of train/1.png" in message


def test_lines_for_pictures_that_no_source_has_are_counted(tmp_path, capsys):
    one, two = fill(tmp_path / "one", "1.png"), fill(tmp_path / "two", "2.png")
    labels = write_csv(tmp_path / "labels.csv", "image,label", "1,cat", "2,dog", "3,cat", "4,dog")
    images(one, two, labels_csv=labels)
    assert f"{labels}: 2 lines name no image that is there, such as 3" in capsys.readouterr().err
    labels = write_csv(tmp_path / "labels.csv", "image,label", "1,cat", "2,dog", ",cat")
    images(one, two, labels_csv=labels)
    assert "such as one with an empty name" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [["1.png,cat", "2.png,dog"], ["1,cat", "2,dog", "3,cat"]])
def test_a_csv_without_a_header_does_not_lose_its_first_line(tmp_path, lines):
    message = refusal(fill(tmp_path / "x", "1.png", "2.png"), labels_csv=write_csv(tmp_path / "labels.csv", *lines))
    assert "its first line, '1" in message and "write one above it, such as image,label" in message


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_csv_may_have_names_in_the_other_form_of_unicode(tmp_path, forms):
    line, file = (unicodedata.normalize(form, "Bär") for form in forms)
    labels = write_csv(tmp_path / "labels.csv", "image,label", f"{line}.png,cat")
    assert list(labelled(images(fill(tmp_path / "flat", f"{file}.png"), labels_csv=labels)).values()) == ["cat"]


@pytest.mark.parametrize("line", ["./a/1.png,cat", r"a\1.png,cat", r".\a\1.png, cat", " a/1.png , cat"])
def test_a_csv_may_write_paths_as_other_systems_and_tools_do(tmp_path, line):
    labels = write_csv(tmp_path / "labels.csv", "image, label", line)
    assert labelled(images(fill(tmp_path / "flat", "a/1.png"), labels_csv=labels)) == {"flat/a/1.png": "cat"}


@pytest.mark.parametrize(
    ("data", "way_out"),
    [
        (b"image;label\n1.png;cat\n", "put commas between the cells"),
        ("image,label".encode("utf-16"), "save it as UTF-8"),
    ],
)
def test_a_csv_of_another_program_is_refused_with_the_way_out(tmp_path, data, way_out):
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(UserError, match=way_out):
        read_labels(str(tmp_path / "labels.csv"))


NFC, NFD = (unicodedata.normalize(form, "Bär") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("name", "other"), [("bird", "bird "), ("red fox", "red  fox"), (NFC, NFD)])
def test_classes_that_look_the_same_are_refused(tmp_path, name, other):
    message = refusal(fill(tmp_path / "x", f"{name}/1.png", f"{other}/2.png"))
    assert f"{min(name, other)!a}" in message and f"{max(name, other)!a}" in message and "blanks or Unicode" in message
    labels = write_csv(tmp_path / "labels.csv", "image,label", f"1,{name}", f"2,{other}")
    assert "blanks or Unicode" in refusal(fill(tmp_path / "flat", "1.png", "2.png"), labels_csv=labels)
    message = refusal(fill(tmp_path / "y", f"{other}/1.png"), names=[name])
    assert f"{other!a} is {name!a} there" in message


def test_classes_that_differ_in_case_are_said_and_kept(tmp_path, capsys):
    folder = fill(tmp_path / "x", "Cat/1.png", "a/2.png", "cat/3.png", "A/4.png")
    assert images(folder).features["label"].names == ["A", "Cat", "a", "cat"]
    errors = capsys.readouterr().err
    assert "'Cat' and 'cat' are classes that differ in upper and lower case alone" in errors and "'A' and 'a'" in errors


def test_a_csv_names_an_odd_file_by_its_id(tmp_path):
    folder = fill(tmp_path / "flat", ODD)
    labels = write_csv(tmp_path / "labels.csv", "image,label", "caf%E9.png,cat")
    assert labelled(images(folder, labels_csv=labels)) == {"flat/caf%E9.png": "cat"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "needs a header"),
        (["image"], "needs a header"),
        (["image;label", "1;cat"], "got 'image;label'"),
        (["label,image", "cat,1"], "first column names the image"),
        (["image,kind,size", "1,cat,3"], "has a column 'label', got 'image,kind,size'"),
        (["image,label", "1,cat", "", "1,dog"], "line 4: 1 has a label already"),
        (["image,label", "1,cat,3"], "line 2: 3 cells under a header of 2"),
        (["image,label", '"1\n2",cat', "3"], "line 4: 1 cells under a header of 2"),
        (["image,label", "x" * 200_000 + ",cat"], "cannot be read as CSV: field larger"),
    ],
)
def test_a_wrong_csv_is_refused_with_the_line(tmp_path, lines, message):
    path = write_csv(tmp_path / "labels.csv", *lines)
    with pytest.raises(UserError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


def test_a_csv_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"image,label\ncaf\xe9,cat\n")
    for name, message in (("latin.csv", "utf-8"), ("none.csv", "No such file"), (".", "Is a directory")):
        with pytest.raises(UserError, match=f"cannot be read as CSV: .*{message}"):
            read_labels(str(tmp_path / name))


def test_a_csv_may_have_a_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b'\xef\xbb\xbf"image, or name",label\r\n1,cat\r\n\r\n2,dog\r\n\r\n')
    assert read_labels(str(tmp_path / "labels.csv")) == {"1": "cat", "2": "dog"}


def test_another_column_than_the_label_is_never_taken_for_it(tmp_path):
    path = write_csv(tmp_path / "labels.csv", "image,label", "1,cat")
    with pytest.raises(UserError, match="has a column 'patient'"):
        read_labels(path, "patient")


def test_a_relative_path_goes_before_a_file_name():
    labels = {"1": "by stem", "1.png": "by name", "a/1": "by path"}
    by_path = {"a/1.png": "by path", "b/1.png": "by name", "b/1.jpg": "by stem"}
    names = names_of(labels, [*by_path, "b/2.jpg"])
    assert {path: labels[name] for path, name in names.items()} == by_path


@pytest.mark.parametrize(
    ("line", "files"),
    [("scan.png", ("p1/scan.png", "p2/scan.png")), ("scan", ("p1/scan.png", "scan.png")), ("3", ("3.png", "3.jpg"))],
)
def test_a_line_that_fits_several_pictures_labels_none_of_them(tmp_path, line, files):
    folder = fill(tmp_path / "flat", *files)
    path = write_csv(tmp_path / "labels.csv", "image,label", f"{line},cat", "dog.png,dog")
    message = f"the line of {line} fits 2 images: .*{files[0]}.*; name each with its folder"
    assert re.search(message, refusal(folder, labels_csv=path))


def test_two_lines_of_one_picture_that_contradict_each_other_are_refused(tmp_path):
    folder = fill(tmp_path / "flat", "3.png", "dog.png")
    path = write_csv(tmp_path / "labels.csv", "image,label", "3,cat", "3.png,bird", "dog.png,dog")
    assert "labels: 3.png has two lines, 3.png,bird and 3,cat; remove one" in refusal(folder, labels_csv=path)
    path = write_csv(tmp_path / "labels.csv", "image,label", "3,bird", "3.png,bird", "dog.png,dog")
    assert len(images(folder, labels_csv=path)) == 2


def test_a_table_s_path_is_no_pattern(tmp_path):
    parquet(tmp_path / "photos1.parquet", table(["b", "c"]))
    parquet(tmp_path / "photos[1].parquet", table(["a", "d"]))
    actual = images(tmp_path / "photos[1].parquet")
    assert labelled(actual) == {"photos[1].parquet/00000000": "a", "photos[1].parquet/00000001": "d"}


def test_groups_come_from_a_column_of_the_csv(tmp_path):
    folder = fill(tmp_path / "flat", "1.png", "2.png", "3.png")
    labels = write_csv(tmp_path / "l.csv", "image,label,patient", "1,cat,p", "2,cat,q", "3,dog,")
    assert list(images(folder, labels_csv=labels, group="patient")["group"]) == ["p", "q", ""]


def test_groups_come_from_a_pattern_in_the_id(tmp_path):
    folder = fill(tmp_path / "x", "cat/p1_1.png", "cat/p1_2.png", "dog/p2_1.png")
    assert list(images(folder, group=r"/(p\d+)_")["group"]) == ["p1", "p1", "p2"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("patient", "folds.group: 'patient' is a column, and images.train has none"),
        ("(", "folds.group: '(' is no regular expression"),
        ("(a)(b)", "folds.group: '(a)(b)' must have exactly one (group), it has 2"),
        (r"/(p\d+)_", r"does not match x/cat/other.png (1 such)"),
        (r"(p\d+)?", r"does not match x/cat/other.png (2 such)"),
    ],
)
def test_a_group_that_cannot_be_found_is_refused(tmp_path, group, message):
    assert message in refusal(fill(tmp_path / "x", "cat/other.png", "p1_1.png/p1_2.png"), group=group)


@pytest.mark.parametrize(
    ("label", "values", "names"),
    [
        (Value("string"), ["b10", "b9", "b9"], ["b9", "b10"]),
        (Value("int64"), [10, 9, 9], ["9", "10"]),
        (Value("bool"), [True, False, True], ["False", "True"]),
        (ClassLabel(names=["z", "y", "x"]), [0, 2, 2], ["x", "y", "z"]),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_with_embedded_pictures_are_read(tmp_path, kind, label, values, names):
    rows = table(values, label)
    if kind == "arrow":
        rows.save_to_disk(str(tmp_path / "saved"))
        shutil.copy(next((tmp_path / "saved").glob("*.arrow")), tmp_path / "t.arrow")
    else:
        parquet(tmp_path / "t.parquet", rows)
    before = sorted(os.listdir(tmp_path))
    actual = images(tmp_path / f"t.{kind}")
    assert list(actual["id"]) == [f"t.{kind}/0000000{row}" for row in range(3)]
    assert actual.features["label"].names == names
    as_text = [label.names[value] for value in values] if isinstance(label, ClassLabel) else [str(v) for v in values]
    assert list(labelled(actual).values()) == as_text
    assert [pixels(actual, row)[0, 0, 0] for row in range(3)] == [0, 1, 2]
    assert sorted(os.listdir(tmp_path)) == before


def test_reading_a_table_does_not_copy_its_pictures_again(tmp_path, hub_cache):
    one, two = (parquet(tmp_path / name, table(["a", "b"])) for name in ("one.parquet", "two.parquet"))
    images(two, one, fill(tmp_path / "x", "a/1.png", "b/1.png"))
    assert sum(picture(0) in path.read_bytes() for path in hub_cache.rglob("*.arrow")) == 2


def test_a_table_may_hold_plain_bytes(tmp_path):
    path = parquet(tmp_path / "t.parquet", table(["a", "b"], image=Value("binary"), images=[picture(5), picture(6)]))
    assert pixels(images(path), 1)[0, 0, 0] == 6


def test_a_table_s_columns_may_have_other_names(tmp_path):
    rows = table(["a", "b"], owner=["p", "q"]).rename_columns({"image": "photo", "label": "kind"})
    actual = images(parquet(tmp_path / "t.parquet", rows), image_column="photo", label_column="kind", group="owner")
    assert list(labelled(actual).values()) == ["a", "b"]
    assert list(actual["group"]) == ["p", "q"]


def test_folders_and_tables_are_pooled(tmp_path):
    path = parquet(tmp_path / "t.parquet", table([0, 1], ClassLabel(names=["b", "a"])))
    actual = images(path, fill(tmp_path / "x", "a/1.png", "b/1.png"))
    assert labelled(actual) == {
        "t.parquet/00000000": "b",
        "t.parquet/00000001": "a",
        "x/a/1.png": "a",
        "x/b/1.png": "b",
    }
    assert list(actual["source"]) == [0, 0, 1, 1]


def test_a_table_with_named_classes_must_name_them_all_and_one_without_need_not(tmp_path):
    folder = fill(tmp_path / "x", "a/1.png", "b/1.png")
    assert "t.parquet lacks the classes b" in refusal(
        folder, parquet(tmp_path / "t.parquet", table([0], ClassLabel(names=["a"])))
    )
    assert len(images(folder, parquet(tmp_path / "u.parquet", table(["a"])))) == 3


def test_a_hub_dataset_is_read_by_its_id_and_split(tmp_path):
    (tmp_path / "pets").mkdir()
    parquet(tmp_path / "pets/train-0.parquet", table(["cat", "dog"]))
    parquet(tmp_path / "pets/test-0.parquet", table(["dog"]))
    assert labelled(images(f"hub:{tmp_path}/pets")) == {"pets-train/00000000": "cat", "pets-train/00000001": "dog"}
    both = images(f"hub:{tmp_path}/pets:test", f"hub:{tmp_path}/pets:train")
    assert list(both["id"]) == ["pets-test/00000000", "pets-train/00000000", "pets-train/00000001"]
    assert list(both["source"]) == [0, 1, 1]
    assert "cannot load" in refusal(f"hub:{tmp_path}/pets:other")
    assert "cannot load" in refusal(f"hub:{tmp_path}/none")
    assert "listed twice" in refusal(f"hub:{tmp_path}/pets", f"hub:{tmp_path}/pets:train")


@pytest.mark.parametrize(
    "path", ["{foreign}", "{cache}/hub{up}{foreign}", "https://example.com/1.png", "{cache}/hub/a\0b", "fine.png"]
)
@pytest.mark.parametrize("image", [ImageFeature(decode=False), Value("string")])
def test_a_table_that_names_a_file_elsewhere_is_refused(tmp_path, hub_cache, image, path):
    foreign = fill(tmp_path, "private.png") / "private.png"
    path = path.format(foreign=foreign, cache=hub_cache, up="/.." * 20)
    as_struct = isinstance(image, ImageFeature)
    named = [EMBEDDED | {"path": "fine.png"}, {"bytes": None, "path": path}] if as_struct else [path, path]
    message = refusal(parquet(tmp_path / "t.parquet", table(["a", "b"], image=image, images=named)))
    assert f"row {int(as_struct)} of {tmp_path / 't.parquet'} names the file {path!r}" in message
    assert "embed the images" in message


@pytest.mark.parametrize("inside", ["datasets", "hub"])
def test_a_table_may_name_files_that_the_hub_put_into_its_cache(tmp_path, hub_cache, inside):
    fill(hub_cache / inside, "0.png", "1.png")
    rows = table(["a"], images=[{"bytes": None, "path": str(hub_cache / inside / "1.png")}])
    assert pixels(images(parquet(tmp_path / "t.parquet", rows)), 0)[0, 0, 0] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table(["a", None]), "images.train: row 1 of T has no label (1 such)"),
        (table(["a", ""]), "images.train: row 1 of T has no label (1 such)"),
        (table([0, -1, -1], ClassLabel(names=["a"])), "images.train: row 1 of T has no label (2 such)"),
        (table([0, None], ClassLabel(names=["a"])), "images.train: row 1 of T has no label (1 such)"),
        (
            table([0.5], Value("float64")),
            "label_column: 'label' of T must hold text or whole numbers, it holds float64",
        ),
        (table([["a"]], List(Value("string"))), "label_column: 'label' of T must hold text or whole numbers, it holds"),
        (table(["a", "b"], images=[EMBEDDED, None]), "images.train: row 1 of T has no image"),
        (table(["a"], image=Value("int64"), images=[1]), "images.image_column: 'image' of T holds no images"),
        (table(["a"]).rename_column("image", "b"), "images.image_column: T has no column 'image'; it has b, label"),
        (table(["a"]).rename_column("label", "b"), "images.label_column: T has no column 'label'; it has image, b"),
    ],
)
def test_a_table_without_labels_or_pictures_is_refused(tmp_path, rows, message):
    path = parquet(tmp_path / "t.parquet", rows)
    assert message in refusal(path).replace(path, "T")


def test_a_table_without_the_group_s_column_or_rows_is_refused(tmp_path):
    path = parquet(tmp_path / "t.parquet", table(["a"]))
    assert f"folds.group: {path} has no column 'owner'; it has image, label" in refusal(path, group="owner")
    schema = table(["a"]).data.schema
    with pa.ipc.new_stream(tmp_path / "t.arrow", schema) as stream:
        stream.write_table(schema.empty_table())
    assert f"images.train: {tmp_path / 't.arrow'} holds no rows" in refusal(tmp_path / "t.arrow")


def test_a_missing_picture_above_left_over_bytes_is_refused(tmp_path):
    fields = [pa.array([picture(), picture()], pa.binary()), pa.array(["a", "b"])]
    column = pa.StructArray.from_arrays(fields, ["bytes", "path"], mask=pa.array([False, True]))
    rows = pa.table({"image": column, "label": ["a", "b"]})
    with pa.ipc.new_stream(tmp_path / "t.arrow", rows.schema) as stream:
        stream.write_table(rows)
    assert f"row 1 of {tmp_path / 't.arrow'} has no image" in refusal(tmp_path / "t.arrow")


@pytest.mark.filterwarnings("ignore:Downcasting array dtype")
@pytest.mark.parametrize(
    "kind", ["large_binary", "binary_view", "array", "PARQUET", "arrow", "arrow file", "save_to_disk"]
)
def test_training_and_prediction_read_the_same_tables(tmp_path, kind):
    shades = [[[[shade, 0, 7]] * 4] * 4 for shade in range(3)]
    column = pa.array([picture(shade) for shade in range(3)])
    if kind == "array":
        column = pa.array(shades, pa.list_(pa.list_(pa.list_(pa.uint8()))))
    elif kind in ("large_binary", "binary_view"):
        column = column.cast(getattr(pa, kind)())
    labelled = pa.table({"image": column, "label": ["cat", "dog", "cat"]})
    names = {"PARQUET": "x.PARQUET", "arrow": "x.arrow", "arrow file": "x.arrow", "save_to_disk": "x"}
    path = tmp_path / names.get(kind, "x.parquet")
    if kind == "arrow":
        write_table(path, labelled)
    elif kind == "arrow file":
        with pa.ipc.new_file(path, labelled.schema) as file:
            file.write_table(labelled)
    elif kind == "save_to_disk":
        table(["cat", "dog", "cat"]).save_to_disk(path)
    else:
        pyarrow.parquet.write_table(labelled, path)
    (shard,) = find_shards([str(path)], "image")
    trained = images(path)
    read = [image.read() for image in shard.images()]
    predicted = [np.asarray(decode(image) if isinstance(image, bytes) else image) for image in read]
    assert len(predicted) == 3
    for row, pixel in enumerate(predicted):
        assert np.array_equal(pixel, pixels(trained, row)) and pixel[0, 0, 0] == row


def test_the_splits_of_a_saved_data_set_are_named(tmp_path):
    DatasetDict({"train": table(["cat", "dog"]), "test": table(["cat"])}).save_to_disk(tmp_path / "x")
    assert "names several splits; give those that are meant, of test, train" in refusal(tmp_path / "x")
    assert len(images(tmp_path / "x/train")) == 2


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_is_refused_with_the_reason(tmp_path, kind):
    (tmp_path / f"t.{kind}").write_bytes(b"no table" * 100)
    assert f"images.train: cannot load {tmp_path / 't'}.{kind}: " in refusal(tmp_path / f"t.{kind}")


def test_files_of_other_endings_are_left_out_and_counted(tmp_path, capsys):
    folder = fill(tmp_path / "x", "cat/1.PNG", "cat/2.Jpeg", "cat/notes.txt", "dog/3.webp", "dog/a.TXT", "dog/README")
    assert sorted(labelled(images(folder))) == ["x/cat/1.PNG", "x/cat/2.Jpeg", "x/dog/3.webp"]
    assert "3 files are no images by their ending and left out (2 .txt, 1 no ending)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_many_other_endings_are_cut_in_the_warning(tmp_path, capsys):
    list_images(str(fill(tmp_path / "x", *(f"a.k{i}" for i in range(30)))))
    message = capsys.readouterr().err
    assert "30 files" in message
    assert "and 20 more endings" in message


def test_hidden_files_and_folders_are_ignored(tmp_path, capsys):
    folder = fill(
        tmp_path / "x", "cat/1.png", "cat/.1.png", ".git/1.png", "dog/.thumbs/1.png", "dog/2.png", ".DS_Store"
    )
    fill(folder, "@eaDir/1.png", "__MACOSX/1.png", "cat/@eaDir/1.png/small.jpg", "$RECYCLE.BIN/1.png")
    assert sorted(labelled(images(folder))) == ["x/cat/1.png", "x/dog/2.png"]
    assert images(folder).features["label"].names == ["cat", "dog"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "links",
    [
        [("cat/loop", "..")],
        [("cat/loop", "."), ("dog/loop", "../..")],
        [("cat/dogs", "../dog"), ("dog/cats", "../cat")],
        [("cat/a", "../dog"), ("cat/b", "../dog"), ("owl", "cat")],
    ],
)
def test_links_between_folders_do_not_multiply_pictures(tmp_path, links):
    folder = fill(tmp_path / "x", "cat/1.png", "dog/2.png")
    for name, target in links:
        (folder / name).symlink_to(target)
    assert sorted(os.path.relpath(path, folder) for path in walk_files(str(folder))) == ["cat/1.png", "dog/2.png"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    fill(tmp_path / "elsewhere", "1.png", "deep/2.png")
    folder = fill(tmp_path / "x", "dog/2.png")
    (folder / "cat").symlink_to("../elsewhere")
    (tmp_path / "elsewhere/back").symlink_to("..")
    assert labelled(images(folder)) == {"x/cat/1.png": "cat", "x/cat/deep/2.png": "cat", "x/dog/2.png": "dog"}


def test_a_link_to_itself_or_to_nothing_is_an_unreadable_picture(tmp_path):
    folder = fill(tmp_path / "x", "cat/1.png")
    (folder / "cat/loop.png").symlink_to("loop.png")
    (folder / "cat/gone.png").symlink_to("nowhere.png")
    (folder / "loop").symlink_to("loop")
    actual = images(folder)
    assert actual.features["label"].names == ["cat"]
    assert {actual[row]["id"] for row in check_images(actual, frozenset(), "test")[1]} == {
        "x/cat/gone.png",
        "x/cat/loop.png",
    }


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        (ODD, "caf%E9.png"),
        ("a\nb.png", "a%0Ab.png"),
        ("é\x1b[2J.png", "%C3%A9%1B[2J.png"),
        ("a\u2028b.png", "a%E2%80%A8b.png"),
    ],
)
def test_names_that_no_text_file_can_hold_are_percent_encoded_and_readable(tmp_path, name, encoded):
    actual = images(fill(tmp_path / "x", "cat/plain.png", f"cat/{name}", f"{name}/1.png"))
    assert sorted(labelled(actual).items()) == sorted([
        ("x/cat/plain.png", "cat"), (f"x/cat/{encoded}", "cat"), (f"x/{encoded}/1.png", encoded)
    ])  # fmt: skip
    row = list(actual["id"]).index(f"x/cat/{encoded}")
    assert pixels(actual, row)[0, 0, 0] == 1
    assert check_images(actual, frozenset(), "test")[1] == {}


@pytest.mark.parametrize("name", ["plain.png", "über cat (1).png", "100%.png", "[/red].png", "=cmd.png", "猫.png"])
def test_other_names_are_their_own_ids(name):
    assert file_id(f"x/{name}") == f"x/{name}"


def test_an_odd_name_that_cannot_be_read_keeps_its_row(tmp_path):
    folder = fill(tmp_path / "x", "cat/1.png")
    os.mkfifo(folder / f"cat/{ODD}")
    actual = images(folder)
    assert list(check_images(actual, frozenset(), "test")[1]) == [list(actual["id"]).index("x/cat/caf%E9.png")]


def test_a_plain_name_stays_a_path_and_is_not_read_early():
    assert file_image("nowhere/1.png") == {"bytes": None, "path": "nowhere/1.png"}


def test_ids_do_not_depend_on_the_machine(tmp_path, monkeypatch):
    fill(tmp_path / "here/data/train", "cat/1.png")
    shutil.copytree(tmp_path / "here", tmp_path / "there/deeper")
    ids = [list(images(tmp_path / place / "data/train")["id"]) for place in ("here", "there/deeper")]
    monkeypatch.chdir(tmp_path / "here/data/train")
    ids += [list(images(".")["id"]), list(images("../train/")["id"])]
    assert ids == [["train/cat/1.png"]] * 4


def test_more_of_a_path_is_in_the_id_only_where_two_roots_share_a_name(tmp_path):
    names = ("old/x/train", "new/x/train", "val")
    actual = images(*(fill(tmp_path / name, "cat/1.png") for name in names))
    assert sorted(actual["id"]) == ["new/x/train/cat/1.png", "old/x/train/cat/1.png", "val/cat/1.png"]


def test_the_same_folder_twice_is_refused(tmp_path):
    folder = fill(tmp_path / "x", "cat/1.png")
    (tmp_path / "link").symlink_to("x")
    for again in (folder, f"{folder}/", f"{folder}/../x", tmp_path / "link"):
        assert "is listed twice" in refusal(folder, again)


def test_two_files_with_one_id_are_refused(tmp_path):
    assert "two images have the id x/cat/a%0Ab.png" in refusal(fill(tmp_path / "x", "cat/a\nb.png", "cat/a%0Ab.png"))


def test_the_order_of_rows_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    names = [f"{kind}{i % 3}/{'ab'[i % 2]}{i}.png" for kind in "xX" for i in range(30)]
    folder = fill(tmp_path / "data", *names)
    expected = list(images(folder)["id"])
    assert expected == sorted(f"data/{name}" for name in names)
    real = os.scandir

    def shuffled(path: str) -> Iterable[os.DirEntry[str]]:
        entries = list(real(path))
        random.Random(len(entries)).shuffle(entries)
        return entries

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "scandir", shuffled)
        assert list(images(folder)["id"]) == expected


def test_rows_of_sources_are_in_the_order_of_ids_even_where_names_interleave(tmp_path):
    fill(tmp_path / "train", "a/1.png", "b/1.png")
    fill(tmp_path / "train-2", "a/1.png", "b/1.png")
    actual = images(tmp_path / "train", tmp_path / "train-2")
    assert list(actual["id"]) == sorted(actual["id"])
    assert list(actual["source"]) == [1, 1, 0, 0]
    assert [pixels(actual, row)[0, 0, 0] for row in range(4)] == [0, 1, 0, 1]


def test_a_folder_that_cannot_be_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    folder = fill(tmp_path / "x", "cat/1.png")
    real = os.scandir

    def denied(path: str) -> Any:
        if path.endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "scandir", denied)
        assert f"{folder / 'cat'}: cannot be read: Permission denied" in refusal(folder)


def spoilt(folder: Path, good: int, bad: int) -> Dataset:
    fill(folder, *(f"cat/{i:04d}.png" for i in range(good + bad)))
    for i in range(good, good + bad):
        (folder / f"cat/{i:04d}.png").write_bytes([b"", b"text", picture(i)[:45]][i % 3])
    return images(folder)


def test_bad_pictures_are_listed_with_their_reasons(tmp_path):
    actual = spoilt(tmp_path / "x", 3, 3)
    hashes, bad = check_images(actual, frozenset(), "test")
    assert hashes[:3] == [content_hash(picture(i)) for i in range(3)]
    assert len(set(hashes)) == 6
    assert [actual[row]["id"] for row in bad] == [f"x/cat/000{i}.png" for i in (3, 4, 5)]
    assert ["empty file" in bad[3], "known format" in bad[4], len(bad[5]) > 5] == [True] * 3


def test_every_picture_is_decoded_once_and_known_ones_never(tmp_path, monkeypatch):
    actual = images(fill(tmp_path / "x", *(f"cat/{i}.png" for i in range(9))))
    monkeypatch.setattr(scan, "usable_cores", lambda: 0)  # no workers, which would not be noticed
    decoded = faults.note_calls(monkeypatch, scan, "decode")
    hashes, bad = check_images(actual, frozenset(), "test")
    assert [content_hash(call.args[0]) for call in decoded] == hashes
    assert (sorted(hashes), bad) == (sorted(content_hash(picture(i)) for i in range(9)), {})
    decoded.clear()
    assert check_images(actual, frozenset(hashes[:7]), "test") == (hashes, {})
    assert [content_hash(call.args[0]) for call in decoded] == hashes[7:]


def test_more_pictures_than_one_slice_are_checked_in_order(tmp_path):
    many = Dataset.from_dict(
        {"image": [{"bytes": picture(i), "path": None} for i in range(1030)] + [{"bytes": b"x", "path": None}]}
    )
    hashes, bad = check_images(many, frozenset(), "test")
    assert hashes == [content_hash(picture(i)) for i in range(1030)] + [content_hash(b"x")]
    assert list(bad) == [1030]


SMALL = [(10, 3, None, False), (10, 4, None, True), (10, 1, 0, True), (10, 9, 9, False)]
LARGE = [(500, 5, None, False), (500, 6, None, True), (500, 5, 4, True)]


@pytest.mark.parametrize(("rows", "bad", "max_bad", "refused"), SMALL + LARGE)
def test_more_bad_pictures_than_the_limit_are_refused(rows, bad, max_bad, refused, capsys):
    actual = Dataset.from_dict({"id": [f"x/{row}" for row in range(rows)]})
    reasons = {row: f"reason {row}" for row in range(bad)}
    if refused:
        with pytest.raises(UserError) as caught:
            refuse_bad(actual, reasons, max_bad, field="images.train")
        message = str(caught.value)
        assert f"set images.max_bad={bad}" in message
    else:
        refuse_bad(actual, reasons, max_bad, field="images.train")
        message = capsys.readouterr().err
        assert "they are left out" in message
    assert f"images.train: {bad} of {rows} images cannot be decoded" in message
    assert all(f"x/{row}: reason {row}" in message for row in range(bad))


def test_twenty_bad_pictures_are_named_and_the_rest_counted():
    actual = Dataset.from_dict({"id": [f"x/{row}" for row in range(30)]})
    with pytest.raises(UserError, match=r"and 5 more\nimages\.max_bad allows 3") as caught:
        refuse_bad(actual, {row: "broken" for row in range(25)}, None, field="images.train")
    assert [f"x/{row}: broken" in str(caught.value) for row in range(25)] == [True] * 20 + [False] * 5


def test_no_bad_picture_is_no_message(capsys):
    refuse_bad(Dataset.from_dict({"id": ["x"]}), {}, 0, field="images.train")
    assert capsys.readouterr().err == ""


ROWS = (["x/1", "x/2"], [0, 1], ["aa", "bb"], ["cat", "dog"])


def fingerprint_of(rows: tuple[list[str], list[int], list[str], list[str]]) -> str:
    ids, labels, hashes, names = rows
    return fingerprint(ids, labels, hashes, class_names=names)


@pytest.mark.parametrize(
    "changed",
    [
        (["x/1", "x/3"], [0, 1], ["aa", "bb"], ["cat", "dog"]),
        (["x/1", "x/2"], [0, 0], ["aa", "bb"], ["cat", "dog"]),
        (["x/1", "x/2"], [0, 1], ["aa", "bc"], ["cat", "dog"]),
        (["x/1", "x/2"], [0, 1], ["aa", "bb"], ["cat", "owl"]),
        (["x/1", "x/2"], [0, 1], ["aa", "bb"], ["dog", "cat"]),
        (["x/1"], [0], ["aa"], ["cat", "dog"]),
    ],
)
def test_the_fingerprint_changes_with_name_label_content_and_classes(changed):
    assert fingerprint_of(changed) != fingerprint_of(ROWS)


def test_the_fingerprint_does_not_depend_on_order_or_number_type():
    ids, labels, hashes, names = ROWS
    assert fingerprint(ids[::-1], labels[::-1], hashes[::-1], class_names=names) == fingerprint_of(ROWS)
    assert fingerprint(ids, np.array(labels), hashes, class_names=names) == fingerprint_of(ROWS)  # type: ignore[arg-type]


def test_a_label_and_a_picture_are_read_alike_from_folder_and_table(tmp_path):
    folder = images(fill(tmp_path / "x", "a/1.png", "b/1.png"))
    rows = images(parquet(tmp_path / "t.parquet", table(["a", "b"])))
    assert folder.features == rows.features
    assert check_images(folder, frozenset(), "test") == check_images(rows, frozenset(), "test")


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_rows_hold_next_to_no_memory(tmp_path, kind):
    rows = 20_000
    if kind == "table":
        source = parquet(tmp_path / "t.parquet", table(["a", "b"] * (rows // 2), images=[EMBEDDED] * rows))
    else:
        source = fill(tmp_path / "x", *(f"a/{row}.png" for row in range(rows)))
    actual, held = holding(lambda: images(source))
    assert len(actual) == rows and held <= 5 * rows
