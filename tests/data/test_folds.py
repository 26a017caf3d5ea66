"""The folds' promises: who is held out where, who stays together, and a fold file that says the same everywhere."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from creature.data import arrow_tables
from creature.data.folds import FoldTable, assign_folds, folds_hash, group_copies, read_folds, write_folds
from creature.errors import BrokenError, UserError
from helpers.fold_files import old_text
from helpers.memory import holding

SEEDS = st.integers(0, 2**32 - 1)


def single(n: int) -> list[str]:
    return [str(row) for row in range(n)]


def per_class(labels: np.ndarray, fold: np.ndarray, count: int) -> np.ndarray:
    """Rows of each class in each fold (K folds, C classes)."""
    return np.array([np.bincount(labels[fold == k], minlength=labels.max() + 1) for k in range(count)])


@st.composite
def labels_of_rows(draw: st.DrawFn) -> np.ndarray:
    """Labels of up to 200 rows and 30 classes, evenly or very unevenly spread."""
    n, classes = draw(st.integers(2, 200)), draw(st.integers(1, 30))
    random = np.random.default_rng(draw(SEEDS))
    if draw(st.booleans()):
        return random.integers(0, classes, n)
    return np.minimum(random.geometric(0.3, n) - 1, classes - 1)


@given(labels=labels_of_rows(), folds=st.integers(2, 10), seed=SEEDS)
def test_without_groups_each_class_is_spread_to_within_one_row(labels, folds, seed):
    count = min(folds, len(labels))
    fold = assign_folds(labels, single(len(labels)), count, seed=seed)
    assert fold.shape == labels.shape
    assert set(fold) == set(range(count))
    assert np.ptp(per_class(labels, fold, count), axis=0).max() <= 1


@given(labels=labels_of_rows(), data=st.data(), seed=SEEDS)
def test_with_groups_every_row_is_in_one_fold_and_no_group_is_split(labels, data, seed):
    drawn = data.draw(st.lists(st.integers(0, len(labels)), min_size=len(labels), max_size=len(labels)))
    groups = ["first", "second", *(f"g{g}" for g in drawn[2:])]
    count = data.draw(st.integers(2, min(len(set(groups)), 10)))
    fold = assign_folds(labels, groups, count, seed=seed)
    assert fold.shape == labels.shape
    assert set(fold) == set(range(count))
    assert len(set(zip(groups, fold.tolist(), strict=True))) == len(set(groups))


def test_classes_smaller_than_the_number_of_folds_do_not_pile_up():
    labels = np.repeat(np.arange(100), 3)
    sizes = np.bincount(assign_folds(labels, single(300), 5, seed=0))
    assert sizes.sum() == 300
    assert np.ptp(sizes) <= 6


@pytest.mark.parametrize("size", [2, 3, 7])
def test_groups_of_one_size_are_spread_by_class_and_size(size):
    labels = np.repeat(np.tile(np.arange(4), 25), size)
    groups = [str(row // size) for row in range(len(labels))]
    counts = per_class(labels, assign_folds(labels, groups, 5, seed=0), 5)
    assert (counts == 5 * size).all()


def test_large_groups_leave_room_for_small_ones():
    groups = ["large"] * 50 + single(150)
    sizes = np.bincount(assign_folds(np.zeros(200, dtype=int), groups, 4, seed=0))
    assert sizes.tolist() == [50, 50, 50, 50]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_class_rarer_than_the_folds_is_in_as_many_as_it_can(rows):
    labels = np.array([0] * 20 + [1] * rows)
    counts = per_class(labels, assign_folds(labels, single(len(labels)), 5, seed=0), 5)
    assert sorted(counts[:, 1]) == [0] * (5 - rows) + [1] * rows


def test_folds_depend_on_the_seed_alone():
    labels = np.arange(60) % 3
    first, again, other = (assign_folds(labels, single(60), 5, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_the_names_of_groups_do_not_matter_to_their_sizes():
    labels = np.arange(60) % 3
    a = assign_folds(labels, [f"a{row // 2:02d}" for row in range(60)], 5, seed=0)
    b = assign_folds(labels, [f"b{row // 2:02d}" for row in range(60)], 5, seed=0)
    assert (a == b).all()


@pytest.mark.parametrize("groups", [["a"] * 9, ["a", "b", "b", "a"]])
def test_more_folds_than_groups_are_refused(groups):
    with pytest.raises(
        UserError, match=f"folds.count: 3 folds need as many groups of images, there are {len(set(groups))}"
    ):
        assign_folds(np.zeros(len(groups), dtype=int), groups, 3, seed=0)


def parts(groups: Sequence[str] | np.ndarray) -> set[frozenset[int]]:
    return {frozenset(row for row, other in enumerate(groups) if other == group) for group in groups}


def test_identical_files_and_groups_are_together_across_both():
    groups = ["p", "q", "", "q", "r", ""]
    hashes = ["1", "1", "2", "3", "4", "2"]
    assert parts(group_copies(groups, hashes, [0] * 6, class_names=["cat"])) == {
        frozenset({0, 1, 3}),
        frozenset({2, 5}),
        frozenset({4}),
    }


def test_rows_without_a_group_are_each_alone():
    assert parts(group_copies([""] * 5, list("abcde"), [0] * 5, class_names=["cat"])) == {
        frozenset({row}) for row in range(5)
    }


def test_a_group_named_like_a_hash_or_row_joins_nothing_else():
    assert len(parts(group_copies(["a", "b", "0"], ["b", "x", "a"], [0] * 3, class_names=["cat"]))) == 3


@given(pairs=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 30)), min_size=1, max_size=40))
def test_rows_that_hang_together_by_copies_and_groups_are_one_group(pairs):
    n = len(pairs)
    groups = [f"g{group}" if group else "" for group, _ in pairs]
    hashes = [f"h{content}" for _, content in pairs]
    joined = np.array(
        [
            [a == b or (g == h != "") for b, h in zip(hashes, groups, strict=True)]
            for a, g in zip(hashes, groups, strict=True)
        ]
    )
    for _ in range(n):
        joined = joined @ joined
    assert parts(group_copies(groups, hashes, [0] * n, class_names=["cat"])) == {
        frozenset(np.flatnonzero(row).tolist()) for row in joined
    }


def test_no_copy_of_a_file_is_in_another_fold():
    draw = np.random.default_rng(0)
    hashes = [str(h) for h in draw.integers(0, 60, 200)]
    labels = draw.integers(0, 3, 200)
    groups = group_copies([""] * 200, hashes, labels.tolist(), class_names=["a", "b", "c"])
    fold = assign_folds(labels, groups, 5, seed=0)
    assert len(set(zip(hashes, fold.tolist(), strict=True))) == len(set(hashes))


def test_look_alikes_that_are_more_than_a_fold_leave_folds_of_equal_size():
    labels = np.repeat([0, 1], [48, 42])  # such as one camera's frames, class by class
    names = [str(row) for row in range(90)]
    alike = np.zeros(90, int)
    groups = group_copies([""] * 90, names, labels, class_names=["cat", "dog"], alike=alike, largest=45)
    folds = assign_folds(labels, groups, 2, seed=0)
    assert np.bincount(folds).tolist() == [45, 45] and np.bincount(labels[folds == 0]).tolist() == [24, 21]


def test_look_alikes_make_no_group_above_a_fold_and_a_declared_one_is_said(capsys):
    alone, labels = [""] * 90, [0] * 90
    hashes = [f"{row}" for row in range(90)]
    groups = group_copies(alone, hashes, labels, class_names=["a"], alike=np.zeros(90, int), largest=30)
    assert max(np.unique(groups, return_counts=True)[1]) == 30
    assert "60 images may be in another fold than one that looks the same" in " ".join(capsys.readouterr().err.split())
    assert np.ptp(np.bincount(assign_folds(np.array(labels), groups, 3, seed=0))) == 0
    group_copies(["one"] * 60 + [""] * 30, hashes, labels, class_names=["a"], largest=30)
    assert "has 60 of 90 images, and a fold 30" in " ".join(capsys.readouterr().err.split())


def test_copies_with_another_label_are_counted_and_named(capsys):
    group_copies([""] * 4, ["1", "1", "1", "2"], [0, 1, 1, 1], class_names=["cat", "dog"])
    assert "2 files are copies of one with another label, such as one in cat and dog" in capsys.readouterr().err
    group_copies([""] * 2, ["1", "1"], [1, 1], class_names=["cat", "dog"])
    assert capsys.readouterr().err == ""


def plain_folds(labels: np.ndarray, groups: Sequence[str], count: int, seed: int) -> np.ndarray:
    """assign_folds as it was written first, a group's rows at a time: runs of every version share its folds."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    shuffled = np.random.default_rng(seed).permutation(len(members))
    totals = np.bincount(labels)
    held, fold = np.zeros((count, len(totals))), np.empty(len(labels), dtype=np.int64)
    for g in sorted(shuffled, key=lambda g: -len(members[g])):
        classes, n = np.unique(labels[members[g]], return_counts=True)
        crowding = (held[:, classes] * (n / totals[classes])).sum(1) + held.sum(1) / len(labels) / 100
        chosen = int(crowding.argmin())
        held[chosen, classes] += n
        fold[members[g]] = chosen
    return fold


def plain_groups(groups: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """together as it was written first, a row at a time."""
    first: dict[str, int] = {}
    parent = list(range(len(hashes)))

    def root(row: int) -> int:
        return row if parent[row] == row else root(parent[row])

    for row, (group, content) in enumerate(zip(groups, hashes, strict=True)):
        for key in (f"hash {content}", f"group {group}" if group else f"row {row}"):
            parent[root(row)] = root(first.setdefault(key, row))
    return [str(root(row)) for row in range(len(hashes))]


@given(
    n=st.integers(20, 400),
    classes=st.integers(1, 30),
    copies=st.sampled_from(["many", "few"]),
    grouping=st.sampled_from(["none", "small", "large"]),
    seed=SEEDS,
)
def test_groups_and_folds_are_those_of_every_version(n, classes, copies, grouping, seed):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    hashes = [f"h{h}" for h in draw.integers(0, {"many": n // 4, "few": 5 * n}[copies], n)]
    highest = {"none": 1, "small": n // 2, "large": n // 10 + 1}[grouping]
    groups = [f"g{g}" if g else "" for g in draw.integers(0, highest, n)]
    joined = group_copies(groups, hashes, labels, class_names=[str(k) for k in range(classes)])
    assert joined.tolist() == plain_groups(groups, hashes)
    count = min(5, len(set(joined.tolist())))
    assert (
        assign_folds(labels, joined, count, seed=seed).tolist()
        == plain_folds(labels, joined.tolist(), count, seed).tolist()
    )


def many_rows(rows: int) -> FoldTable:
    ids = [f"x/class {row % 7}/{'éa'[row % 2]}{row:08d}.jpg" for row in range(rows)]
    return fold_file(
        ids=pa.chunked_array([ids]),
        labels=np.arange(rows) % 3,
        partitions=(np.arange(rows) % 2,),
        hashes=pa.chunked_array([[f"{row:032x}" for row in range(rows)]]),
    )


def test_files_and_hashes_of_many_rows_are_those_of_every_version(tmp_path):
    folds = many_rows(25_000)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/folds.json").write_text(old_text(folds))
    write_folds(tmp_path, folds)
    ids, fold = folds.ids.to_pylist(), folds.partitions[0].tolist()
    partition = json.dumps([folds.fingerprint, folds.count, sorted(zip(ids, fold, strict=True))])
    assert folds_hash(folds) == hashlib.sha256(partition.encode()).hexdigest()
    for again in (read_folds(tmp_path), read_folds(tmp_path / "old")):
        assert again.table.equals(folds.table) and (again.class_names, again.bad) == (folds.class_names, folds.bad)
        assert folds_hash(again) == folds_hash(folds)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_fold_file_in_another_layout_is_read_alike(tmp_path, indent):
    data = json.loads(old_text(fold_file()))
    del data["sha256"]
    (tmp_path / "folds.json").write_text(json.dumps(data, indent=indent))
    assert read_folds(tmp_path).table.equals(fold_file().table)


def test_a_fold_file_holds_no_memory_for_a_row(tmp_path):
    write_folds(tmp_path, many_rows(20_000))
    folds, held = holding(lambda: read_folds(tmp_path))
    assert len(folds.ids) == 20_000 and held <= 20_000


def test_other_programs_read_the_file(tmp_path):
    write_folds(tmp_path, many_rows(20))
    table = Dataset.from_file(str(tmp_path / "folds.arrow"))
    assert table["id"][:] == many_rows(20).ids.to_pylist() and table["fold"][:3] == [0, 1, 0]


def fold_file(**changes: Any) -> FoldTable:
    folds = FoldTable(
        count=2,
        seed=7,
        class_names=("cat", "naïve\n\"dog\"", "\udce9"),
        fingerprint="f" * 64,
        ids=pa.chunked_array([["x/1.png", 'x/"2",\n.png', "x/猫.png", "x/\\4]}.png"]]),
        labels=np.array([0, 1, 2, 0]),
        partitions=(np.array([0, 1, -1, 1]),),
        hashes=pa.chunked_array([["a", "b", "c", "d"]]),
        bad={'x/"bad"\n.png': "empty file", "x/%E9.png": "not an image: \x00\udce9"},
    )  # fmt: skip
    return replace(folds, **changes)


@pytest.mark.parametrize("old", [False, True])
def test_a_fold_file_is_read_as_it_was_written(tmp_path, old):
    folds = fold_file()
    if old:
        (tmp_path / "folds.json").write_text(old_text(folds))
    else:
        write_folds(tmp_path, folds)
    again = read_folds(tmp_path)
    for name in ("count", "seed", "class_names", "fingerprint", "ids", "hashes", "bad"):
        assert getattr(again, name) == getattr(folds, name)
    assert again.labels.tolist() == folds.labels.tolist()
    assert [fold.tolist() for fold in again.partitions] == [fold.tolist() for fold in folds.partitions]
    assert (again.labels.dtype, again.partitions[0].dtype) == (np.int64, np.int8)
    assert [path.name for path in tmp_path.iterdir()] == ["folds.json" if old else "folds.arrow"]


def test_writing_again_replaces_the_file_whole_and_the_same_rows_give_the_same_bytes(tmp_path):
    write_folds(tmp_path, fold_file())
    first = (tmp_path / "folds.arrow").read_bytes()
    write_folds(tmp_path, fold_file(seed=8))
    assert read_folds(tmp_path).seed == 8
    write_folds(tmp_path, fold_file())
    assert (tmp_path / "folds.arrow").read_bytes() == first
    write_folds(tmp_path, read_folds(tmp_path))
    assert (tmp_path / "folds.arrow").read_bytes() == first


def test_a_row_that_was_moved_to_another_fold_is_noticed(tmp_path):
    path = tmp_path / "folds.json"
    text = old_text(fold_file())
    moved = text.replace(", 0, 0, ", ", 0, 1, ", 1)
    assert moved != text
    path.write_text(moved)
    assert "its content is not what its hash names" in refused(path)
    path.write_text(moved.partition(',\n "sha256"')[0] + "}\n")  # as it was before there was a hash
    assert read_folds(tmp_path).count == fold_file().count
    write_folds(tmp_path, fold_file())
    path = tmp_path / "folds.arrow"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "its content is not what its seal names" in refused(path)


def refused(path: Path) -> str:
    with pytest.raises(BrokenError) as caught:
        read_folds(path.parent)
    assert str(caught.value).startswith(f"{path}: cannot be read as a fold file (")
    assert str(caught.value).endswith("restore it from a copy of the run")
    return str(caught.value)


@pytest.mark.parametrize("old", [False, True])
def test_a_fold_file_cut_at_any_place_is_refused(tmp_path, old):
    write_folds(tmp_path, fold_file())
    path = tmp_path / "folds.arrow"
    whole = path.read_bytes()
    if old:
        path.unlink()
        path, whole = tmp_path / "folds.json", old_text(fold_file()).encode().rstrip()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)


WRONG = [
    ("count", "2"),
    ("count", 2.0),
    ("count", 1),
    ("seed", 1.5),
    ("fingerprint", 3),
    ("names", "abc"),
    ("names", ["cat"]),
    ("names", ["cat", 1, "dog"]),
    ("bad", ["x"]),
]
WRONG_ROWS = [
    [],
    {},
    None,
    [["x", 0, 0]],
    [["x", 0, 0, "a", "b"]],
    [["x", 0.5, 0, "a"]],
    [["x", 0, 10**30, "a"]],
    [["x", 0, 2, "a"]],
    [["x", 0, -2, "a"]],
    [["x", 3, 0, "a"]],
    [["x", -1, 0, "a"]],
    [["x", 0, True, "a"]],
    [[None, 0, 0, "a"]],
    [["x", 0, 0, None]],
    [["x", 0, 0, "a"], ["x", 0, 1, "b"]],
]


@pytest.mark.parametrize(("field", "value"), [*WRONG, *(("rows", rows) for rows in WRONG_ROWS)])
def test_a_json_fold_file_with_a_wrong_or_missing_part_is_refused(tmp_path, field, value):
    path = tmp_path / "folds.json"
    data = json.loads(old_text(fold_file()))
    del data["sha256"]  # or that alone would refuse it
    path.write_text(json.dumps(data | {field: value}))
    refused(path)
    del data[field]
    path.write_text(json.dumps(data))
    assert f"'{field}'" in refused(path)


HEAD = {key: value for key, value in json.loads(old_text(fold_file())).items() if key not in ("rows", "sha256")}


def sealed(path: Path, table: pa.Table, head: dict[str, Any] | None) -> Path:
    """A stranger's fold file: whatever it says, its seal is right."""
    arrow_tables.write_table(path, table.replace_schema_metadata(head and {"folds": json.dumps(head)}))
    return path


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_sealed_fold_file_with_a_wrong_or_missing_part_is_refused(tmp_path, field, value):
    path = sealed(tmp_path / "folds.arrow", fold_file().table, HEAD)
    assert read_folds(tmp_path).count == 2
    refused(sealed(path, fold_file().table, HEAD | {field: value}))
    less = {key: value for key, value in HEAD.items() if key != field}
    assert f"'{field}'" in refused(sealed(path, fold_file().table, less))


def test_a_sealed_fold_file_with_wrong_rows_is_refused(tmp_path):
    path, table = tmp_path / "folds.arrow", fold_file().table
    refused(sealed(path, table, None))
    refused(sealed(path, table[:0], HEAD))
    refused(sealed(path, table.drop_columns(["hash"]), HEAD))
    refused(sealed(path, table.rename_columns(["id", "label", "part", "hash"]), HEAD))
    refused(sealed(path, table, HEAD | {"repeats": 2}))
    refused(sealed(path, table, HEAD | {"repeats": 10**12}))
    for name, values in (
        ("id", ["a", "b", "a", "c"]), ("id", [None, "b", "a", "c"]), ("id", [1, 2, 3, 4]),
        ("label", [0, 1, 2, 3]), ("label", [0, 1, 2, -1]), ("label", ["a"] * 4),
        ("fold", pa.array([0, 1, 2, 0], pa.int8())), ("fold", pa.array([0, 1, -2, 0], pa.int8())), ("fold", [0] * 4),
        ("hash", ["a", "b", None, "c"]),
    ):  # fmt: skip
        at = table.column_names.index(name)
        refused(sealed(path, table.set_column(at, name, pa.chunked_array([values])), HEAD))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_sealed_fold_file_that_is_damaged_is_used_or_refused(tmp_path_factory, changes):
    run = tmp_path_factory.mktemp("sealed")
    write_folds(run, fold_file())
    path = run / "folds.arrow"
    data = bytearray(path.read_bytes()[:-16])
    for place, value in changes:
        data[int(place * len(data))] = value
    path.write_bytes(bytes(data) + hashlib.blake2b(data, digest_size=16).digest())
    try:
        folds = read_folds(run)
    except BrokenError:
        return
    assert len(folds_hash(folds)) == 64 and len(folds.ids.to_pylist()) == len(folds.hashes.to_pylist())


@pytest.mark.parametrize("name", ["folds.arrow", "folds.json"])
@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000, b'{"rows": 3}'])
def test_what_is_no_fold_file_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name)


def test_a_missing_fold_file_is_refused_with_the_reason(tmp_path):
    assert "(No such file or directory)" in refused(tmp_path / "folds.arrow")


def test_equal_partitions_have_one_hash_whatever_their_order_seed_and_unreadable_images(tmp_path):
    folds = fold_file()
    backwards = replace(
        folds,
        ids=folds.ids[::-1],
        labels=folds.labels[::-1],
        partitions=(folds.partitions[0][::-1],),
        hashes=folds.hashes[::-1],
        seed=9,
        bad={},
    )
    assert folds_hash(folds) == folds_hash(backwards)
    write_folds(tmp_path, backwards)
    assert folds_hash(read_folds(tmp_path)) == folds_hash(folds)


@pytest.mark.parametrize(
    "changes",
    [
        {"partitions": (np.array([0, 1, -1, 0]),)},
        {"partitions": (np.array([1, 0, -1, 0]),)},
        {"count": 3},
        {"fingerprint": "0" * 64},
        {"ids": pa.chunked_array([["x/1.png", "x/2.png", "x/猫.png", "x/\\4]}.png"]])},
    ],
)
def test_other_partitions_have_another_hash(changes):
    assert folds_hash(fold_file(**changes)) != folds_hash(fold_file())
