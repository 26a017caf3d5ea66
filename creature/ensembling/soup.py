"""Soups: one network with the mean of the members' weights (Wortsman et al. 2022). M members, N images."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import update_bn

from creature.console import say
from creature.data.arrow_tables import arrow_compute
from creature.data.dataset import column, read_images
from creature.data.folds import assign_folds
from creature.data.loader import Batch, ImageDataset, epoch_batches
from creature.data.sources import Columns
from creature.data.workers import load_batches
from creature.ensembling.acceptance import Candidate, UnseenImages, ingredients, score_record
from creature.errors import UserError
from creature.inference.members import Member, folds_of, load_member, predictor, result_of, short_names
from creature.inference.predictor import Predictor
from creature.recipe import Recipe, load_recipe
from creature.storage import file_hash, write_atomically, write_json
from creature.training.checkpoint import save_weights
from creature.training.run_folder import environment
from creature.training.train_data import epoch_augmentations

ROWS = 2048  # training images that BatchNorm's statistics are taken of
DOUBT = (
    "the mean of these weights is no model: averaging is for members that were fine-tuned from one pretraining, and "
    "not too far"
)

Ingredients = tuple[int, ...]  # members, in order


def average(folders: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of the members' tensors; summed in double, where that of equal ones is each of them bit for bit."""
    first = load_file(folders[0] / "model.safetensors")
    total = {name: value.double() for name, value in first.items()}
    for folder in folders[1:]:
        for name, value in load_file(folder / "model.safetensors").items():
            total[name] += value
    return {name: (value / len(folders)).to(first[name].dtype) for name, value in total.items()}


def greedy(members: Sequence[int], right: Callable[[Ingredients], int]) -> Ingredients:
    """The members that a soup is made of: from the best on, each that makes it no worse stays (Wortsman's recipe 1).

    `right`: how many of the images that choose a soup has right.
    """
    chosen, most = (), -1
    for member in sorted(members, key=lambda member: -right((member,))):
        tried = tuple(sorted((*chosen, member)))
        if (found := right(tried)) >= most:
            chosen, most = tried, found
    return chosen


def choose(
    members: Sequence[int], said: Callable[[Ingredients], np.ndarray], labels: np.ndarray, half: np.ndarray
) -> tuple[list[Ingredients], np.ndarray]:
    """Greedy soups, chosen on all rows, on half 0 and on half 1; and the classes (N,) by which greedy is scored.

    These are cross-fitted: each half's are of the soup that the other half chose, for a soup is never scored on what
    chose it. No training row would do, for each of them was seen by every soup of two members.
    """

    def on(rows: np.ndarray) -> Ingredients:
        return greedy(members, lambda some: int((said(some) == labels)[rows].sum()))

    chosen = [on(np.full(len(half), True)), on(half == 0), on(half == 1)]
    return chosen, np.where(half == 0, said(chosen[2]), said(chosen[1]))


def norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers that keep statistics."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kinds) and module.track_running_stats]


@torch.no_grad()
def recalibrate(member: Member, batches: Iterable[Batch]) -> None:
    """Take BatchNorm's statistics again, of the soup's own activations; those of the members are not its own.

    The mean over batches, as torch has it for averaged weights (Izmailov et al. 2018).
    """
    device = next(member.model.parameters()).device
    update_bn((member.normalize(batch.pixels.to(device)) for batch in batches), member.model)


@contextmanager
def training_batches(run: Path, recipe: Recipe) -> Iterator[Iterator[Batch]]:
    """Training views of up to ROWS of the run's images, the same ones each time, without mixing.

    Raises UserError where they are not there, or, from the iterator, where one cannot be read.
    """
    images, ids = recipe.images, folds_of(run).ids
    columns = Columns(images.image_column, images.label_column, images.labels)
    dataset = read_images(images.train, columns, "images.train")
    rows = np.flatnonzero(arrow_compute().is_in(column(dataset, "id"), ids))
    if len(rows) < len(ids):
        raise UserError(
            f"images.train: {len(ids) - len(rows)} of the {len(ids)} images that {run} was trained on are not there, "
            "and a soup's BatchNorm needs them; restore them"
        )
    order = epoch_batches(rows, recipe.batch_size, recipe.seed, "soup")[: -(-ROWS // recipe.batch_size)]
    pictures = ImageDataset(dataset, epoch_augmentations(recipe)[-1], seed=recipe.seed)
    with load_batches(pictures, [[(int(row), 0) for row in rows] for rows in order], images.workers) as batches:
        yield map(_refuse_bad, batches)


def _refuse_bad(batch: Batch) -> Batch:
    for name, reason in batch.bad.items():
        raise UserError(f"{name}: {reason}; it was readable when the run was trained; restore it")
    return batch


def cook(folders: Sequence[Path], device: torch.device, recipe: Recipe) -> Member:
    """The soup of some members: their mean, with BatchNorm's statistics taken again unless the recipe froze them."""
    member = load_member(folders[0], device)
    if len({result_of(folder)["sha256"]["model.safetensors"] for folder in folders}) > 1:
        member.model.load_state_dict(average(folders))
        if norms(member.model) and not (recipe.backbone.freeze_batch_stats or recipe.backbone.frozen):
            with training_batches(folders[0].parent, recipe) as batches:
                recalibrate(member, batches)
    return member


def make_soup(
    folds: Sequence[Path],
    kind: str,
    unseen: UnseenImages | None,
    device: torch.device,
    batch_size: int,
    see: Callable[[Predictor], Predictor],
) -> tuple[list[Candidate], bool | None]:
    """Write RUN/soup, uniform or greedy, of all folds of a run; the soups to be shown, and whether it is accepted.

    Without unseen images there is a uniform one, and no score.
    """
    run, names, everyone = folds[0].parent, short_names(folds), tuple(range(len(folds)))
    recipe, size = load_recipe(run / "recipe.yaml"), int(result_of(folds[0])["parameters"])

    def of(some: Ingredients) -> Member:
        return cook([folds[member] for member in some], device, recipe)

    @cache
    def said(some: Ingredients) -> np.ndarray:
        assert unseen is not None
        if len(some) == 1:
            return unseen.members[some[0]].predicted
        title = f"soup of {', '.join(names[member] for member in some)}"
        return unseen.classes(see(predictor([of(some)])), batch_size, title)

    models, chosen = [], [everyone]
    if unseen is not None:
        models.append(Candidate("uniform soup", size, said(everyone), DOUBT))
    if unseen is not None and kind == "greedy":
        half = assign_folds(unseen.labels, unseen.hashes, 2, recipe.seed)
        chosen, predicted = choose(everyone, said, unseen.labels, half)
        models.append(Candidate("greedy soup", size, predicted, DOUBT))
        listed = [", ".join(names[member] for member in some) for some in chosen]
        alone = ", to which no other is of use" * (len(chosen[0]) == 1)
        say(f"greedy soup: {listed[0]}{alone}; one half of the images chooses {listed[1]}, the other {listed[2]}")
        say("its score is cross-fitted: each half is answered by the soup that the other half chose", style="dim")
    members = [
        {**fold, "chosen": member in chosen[0], "chosen_by_halves": [member in some for some in chosen[1:]]}
        for member, fold in enumerate(ingredients(folds))
    ]
    words = {"soup": kind, "members": members, **score_record(unseen, models, f"{kind} soup")}
    write_soup(run / "soup", folds[0], of(chosen[0]), words)
    return models, words["accepted"]


def write_soup(folder: Path, fold: Path, soup: Member, words: dict[str, Any]) -> None:
    """Leave a folder that explains itself, as a fold's does; result.json comes last and says that all is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with write_atomically(folder / "model.safetensors") as part:
        save_weights(part, soup.model)
    for name in ("config.json", "recipe.yaml"):
        shutil.copyfile(fold / name, folder / name)
    said = result_of(fold)
    hashes = {name: file_hash(folder / name) for name in ("model.safetensors", "config.json")}
    facts = {key: said[key] for key in ("class_counts", "parameters", "recipe", "folds")}
    write_json(
        folder / "result.json",
        {**words, **facts, **environment(next(soup.model.parameters()).device, 1), "sha256": hashes},
    )
