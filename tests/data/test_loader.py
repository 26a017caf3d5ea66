"""Batches: pure functions of seed, epoch and id, whatever the workers, the processes and the images beside."""

import io
import itertools
import os
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from creature.data.augment import exact_transform, training_augmentation
from creature.data.eval_transform import EvalTransform
from creature.data.loader import ImageDataset, RunImages, start_loader
from creature.data.order import BatchRequest, Share, derive_seed, epoch_batches, fold_requests, process_share
from creature.data.shared_buffers import SharedBuffers
from creature.data.workers import AHEAD, load_batches
from creature.recipe import Augment

B, N = 4, 11
VIEW = training_augmentation(16, Augment(policy="trivial_augment", random_erasing=0.5))
SEEDS = st.integers(0, 2**32 - 1)


def encoded(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def table(broken: int | None = None) -> Dataset:
    images = [{"bytes": b"broken" if row == broken else encoded(row), "path": None} for row in range(N)]
    columns = {"id": [f"id-{row}" for row in range(N)], "image": images, "label": [row % 3 for row in range(N)]}
    return Dataset.from_dict(
        columns, features=Features(id=Value("string"), image=Image(decode=False), label=Value("int64"))
    )


TABLE = table()


def lists(batches) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


# Order


@given(rows=st.lists(st.integers(0, 10**9), min_size=2, max_size=60, unique=True), size=st.integers(2, 20), seed=SEEDS)
def test_an_epoch_has_each_row_once_and_no_batch_of_one(rows, size, seed):
    batches = lists(epoch_batches(np.array(rows), size, seed, 0))
    assert sorted(itertools.chain(*batches)) == sorted(rows)
    lengths = [len(batch) for batch in batches]
    assert all(length == size for length in lengths[:-1]) and 2 <= lengths[-1] <= size + 1
    assert len(lengths) == max(1, -(-len(rows) // size) - (len(rows) % size == 1 and len(rows) > size))


def test_batches_of_one_stay_so_where_they_are_asked_for():
    assert [len(batch) for batch in epoch_batches(np.arange(5), 1, 0)] == [1] * 5


def test_one_row_alone_is_a_batch():
    assert lists(epoch_batches(np.array([7]), B, 0)) == [[7]]


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    rows = np.arange(50)
    orders = {key: lists(epoch_batches(rows, B, *key)) for key in itertools.product(range(3), range(3))}
    np.random.seed(1)
    torch.manual_seed(1)
    assert {key: lists(epoch_batches(rows, B, *key)) for key in reversed(list(orders))} == orders
    assert len({str(order) for order in orders.values()}) == 9
    assert rows.tolist() == list(range(50))


def test_seeds_are_the_same_on_every_machine_and_differ_by_every_part():
    assert derive_seed(0, "a/b") == derive_seed(0, "a/b") == 7586379103533427497
    seeds = {derive_seed(*parts) for parts in itertools.product(range(10), range(10), "abc")}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)


@given(size=st.integers(2, 20), processes=st.integers(1, 9))
def test_shares_part_a_batch_and_an_empty_one_borrows(size, processes):
    batch = np.arange(size) + 10
    shares = [process_share(batch, Share(process, processes)).tolist() for process in range(processes)]
    assert sorted(itertools.chain(*(share for k, share in enumerate(shares) if k < size))) == batch.tolist()
    assert all(share == [10] for share in shares[size:])
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and min(map(len, shares)) >= 1


def order(start: tuple[int, int], process: int = 0, processes: int = 1) -> list[list[tuple[int, int]]]:
    none, share = np.array([], dtype=int), Share(process, processes)
    requests = fold_requests(np.arange(N), none, B, seed=(0, 1), epochs=3, start=start, share=share)
    return [request.items for request in requests]


@given(position=st.tuples(st.integers(0, 2), st.integers(0, 3)) | st.just((3, 0)), processes=st.integers(1, 5))
def test_the_order_from_the_middle_is_the_tail_of_the_whole(position, processes):
    steps = len(epoch_batches(np.arange(N), B, 0))
    done = position[0] * steps + position[1]
    for process in range(processes):
        assert order(position, process, processes) == order((0, 0), process, processes)[done:]


def test_each_epoch_of_the_order_is_its_own_shuffle_with_its_number():
    epochs = [[item for batch in order((0, 0)) for item in batch if item[1] == epoch] for epoch in range(3)]
    assert all(sorted(row for row, _ in items) == list(range(N)) for items in epochs)
    assert len({tuple(row for row, _ in items) for items in epochs}) == 3


def test_the_processes_together_see_what_one_alone_sees():
    together = zip(*(order((0, 0), process, 3) for process in range(3)), strict=True)
    for alone, shares in zip(order((0, 0)), together, strict=True):
        assert sorted(alone) == sorted({item for share in shares for item in share})


# Images


def test_a_view_is_the_same_whatever_stands_beside_it_and_another_in_each_epoch():
    pictures = ImageDataset(TABLE, VIEW, seed=5)
    alone = {(row, epoch): pictures.__getitems__([(row, epoch)]).pixels[0] for row in range(N) for epoch in range(2)}
    items = list(alone)[::-1]
    for chunk in (items, items[3:9], [*items[1:3], *items[7:8]]):
        for item, pixels in zip(chunk, pictures.__getitems__(chunk).pixels, strict=True):
            assert torch.equal(pixels, alone[item])
    assert len({pixels.numpy().tobytes() for pixels in alone.values()}) == 2 * N
    other = ImageDataset(TABLE, VIEW, seed=6).__getitems__([(0, 0)]).pixels[0]
    assert not torch.equal(other, alone[0, 0])


def test_a_view_goes_with_the_id_and_not_with_the_row():
    moved = ImageDataset(TABLE.select([3, 1, 2]), VIEW, seed=5).__getitems__([(0, 0)])
    assert torch.equal(moved.pixels, ImageDataset(TABLE, VIEW, seed=5).__getitems__([(3, 0)]).pixels)


def test_a_batch_has_labels_and_rows_of_its_pictures():
    batch = ImageDataset(TABLE, VIEW, seed=5).__getitems__([(4, 0), (2, 0), (9, 1)])
    assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape == (3, 3, 16, 16)
    assert batch.rows.tolist() == [4, 2, 9] and batch.labels.tolist() == [1, 2, 0] and batch.bad == {}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_no_bit_and_no_order(workers):
    pictures, items = ImageDataset(TABLE, VIEW, seed=5), order((0, 0))
    with load_batches(pictures, iter(items), workers) as batches:
        actual = list(batches)
    assert len(actual) == len(items)
    for batch, expected in zip(actual, map(pictures.__getitems__, items), strict=True):
        assert torch.equal(batch.pixels, expected.pixels) and torch.equal(batch.rows, expected.rows)


def test_batches_of_workers_lie_in_few_buffers_none_of_which_is_written_to_while_it_may_be_read():
    images, workers = ImageDataset(TABLE, VIEW, seed=5), 2
    requests = [BatchRequest([(row % N, row) for row in range(k, k + 3)], held_out=k % 4 == 3) for k in range(30)]
    ahead, places = AHEAD * workers, []
    with start_loader(RunImages(images, images), workers, 3 * 3 * 16 * 16, device=torch.device("cpu")) as load:
        for requested in (requests, requests[::-1]):  # two folds
            for request, batch in zip(requested, load(requested), strict=True):
                expected = images.__getitems__(request.items)
                assert torch.equal(batch.pixels, expected.pixels) and torch.equal(batch.rows, expected.rows)
                assert torch.equal(batch.labels, expected.labels) and batch.ids == expected.ids
                places.append(batch.pixels.data_ptr())
    assert len(set(places)) <= ahead + 3
    # While a batch is in use, those behind it are being made.
    assert all(len(set(places[k : k + ahead + 1])) == ahead + 1 for k in range(len(requests) - ahead))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memory files without a name")
def test_buffers_take_nothing_of_the_shared_memory_that_containers_limit():
    def free() -> int:
        memory = os.statvfs("/dev/shm")
        return memory.f_bavail * memory.f_frsize

    before = free()
    buffers = SharedBuffers(4, 2**22)
    buffers.memory.fill_(1)
    assert before - free() < 2**22  # less than one of them: other programs share it
    assert torch.equal(pickle.loads(pickle.dumps(buffers))[3], buffers[3])
    buffers.close()


@pytest.mark.parametrize("view", [VIEW, exact_transform(EvalTransform(16, "border", (0.5, 0.5, 0.5)))])
def test_pictures_reach_workers_that_are_spawned(view):
    pictures = ImageDataset(TABLE, view, seed=5)
    copy = pickle.loads(pickle.dumps(pictures))
    assert torch.equal(copy.__getitems__([(1, 0), (2, 1)]).pixels, pictures.__getitems__([(1, 0), (2, 1)]).pixels)


def test_the_global_generator_is_left_as_it_was_and_has_no_say():
    pictures = ImageDataset(TABLE, VIEW, seed=5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = pictures.__getitems__([(0, 0), (1, 0)]).pixels
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(pictures.__getitems__([(0, 0), (1, 0)]).pixels, first)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_keeps_its_place_and_is_named_and_changes_no_other(workers):
    items = [[(row, 0) for row in range(5)], [(5, 0), (6, 0)]]
    with load_batches(ImageDataset(table(broken=2), VIEW, seed=5), items, workers) as batches:
        first, second = batches
    whole = ImageDataset(TABLE, VIEW, seed=5).__getitems__(items[0])
    assert list(first.bad) == ["id-2"] and first.bad["id-2"].startswith("not an image") and second.bad == {}
    assert first.rows.tolist() == list(range(5)) and first.labels.tolist() == whole.labels.tolist()
    others = [0, 1, 3, 4]
    assert torch.equal(first.pixels[others], whole.pixels[others])


def test_a_broken_picture_is_black_in_an_evaluation():
    view = exact_transform(EvalTransform(16, "squash", (0.5, 0.5, 0.5)))
    batch = ImageDataset(table(broken=0), view).__getitems__([(0, 0), (1, 0)])
    assert batch.pixels[0].max() == 0 < batch.pixels[1].max()
