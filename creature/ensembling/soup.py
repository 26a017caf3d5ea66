"""Soups: one network with the mean of the members' weights (Wortsman et al. 2022). M members, N images."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import update_bn

from creature.console import say
from creature.data.arrow_tables import arrow_compute
from creature.data.dataset import column, read_images
from creature.data.folds import assign_folds
from creature.data.loader import Batch, ImageDataset
from creature.data.order import epoch_batches
from creature.data.sources import SourceFormat
from creature.data.workers import load_batches
from creature.device import choose_workers
from creature.ensembling.acceptance import Candidate, UnseenImages, score_stand_in
from creature.errors import UserError
from creature.inference.members import Member, load_member
from creature.member_folds import member_names
from creature.results import SoupResult, StandIn, hash_files, write_result
from creature.run import Fold, Run
from creature.storage import write_atomically
from creature.training.checkpoint import host_weights, save_weights
from creature.training.run_folder import environment
from creature.training.train_data import epoch_augmentations

ROWS = 2048  # training images that BatchNorm's statistics are computed from
DOUBT = (
    "the mean of these weights is no model: averaging is for members that were fine-tuned from one pretraining, and "
    "not too far"
)

Ingredients = tuple[int, ...]  # members, in order


def average_weights(members: Sequence[Fold]) -> dict[str, torch.Tensor]:
    """The mean of the members' tensors; summed in double, where that of equal ones is each of them bit for bit."""
    first = load_file(members[0].folder / "model.safetensors")
    total = {name: value.double() for name, value in first.items()}
    for member in members[1:]:
        for name, value in load_file(member.folder / "model.safetensors").items():
            total[name] += value
    return {name: (value / len(members)).to(first[name].dtype) for name, value in total.items()}


def choose_greedily(members: Sequence[int], count_right: Callable[[Ingredients], int]) -> Ingredients:
    """The members that a soup is made of: from the best on, each that makes it no worse stays (Wortsman's recipe 1).

    `count_right` gives the number of right predictions that a soup has on the images that choose.
    """
    chosen, most = (), -1
    for member in sorted(members, key=lambda member: -count_right((member,))):
        candidate = tuple(sorted((*chosen, member)))
        if (correct := count_right(candidate)) >= most:
            chosen, most = candidate, correct
    return chosen


@dataclass(frozen=True)
class GreedyChoice:
    """Greedy soups, and what scores them."""

    on_all: Ingredients  # chosen on all images
    on_halves: tuple[Ingredients, Ingredients]  # on half 0, and on half 1
    predicted: np.ndarray  # (N,) each half's classes by the soup that the other half chose


def choose(
    members: Sequence[int],
    predict: Callable[[Ingredients], np.ndarray],
    *,
    labels: np.ndarray,
    half: np.ndarray,
) -> GreedyChoice:
    """Choose greedy soups, given the half (N,), 0 or 1, that each image is in.

    The score is cross-fitted: a soup is not scored on the images that chose it. Training rows cannot choose, for every
    soup of two members has seen each of them.
    """

    def on(rows: np.ndarray) -> Ingredients:
        return choose_greedily(members, lambda soup: int((predict(soup) == labels)[rows].sum()))

    halves = on(half == 0), on(half == 1)
    predicted = np.where(half == 0, predict(halves[1]), predict(halves[0]))
    return GreedyChoice(on(np.full(len(half), True)), halves, predicted)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers that keep statistics."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kinds) and module.track_running_stats]


@contextmanager
def training_batches(run: Run, device: torch.device) -> Iterator[Iterator[Batch]]:
    """Augmented batches of up to ROWS of the run's images, the same ones each time, without mixing.

    Raises UserError where images are missing, and while iterating where one cannot be read.
    """
    recipe, images, ids = run.recipe, run.recipe.images, run.fold_table.ids
    columns = SourceFormat(images.image_column, images.label_column, images.labels)
    dataset = read_images(images.train, columns, "images.train")
    rows = np.flatnonzero(arrow_compute().is_in(column(dataset, "id"), ids))
    if len(rows) < len(ids):
        raise UserError(
            f"images.train: {len(ids) - len(rows)} of the {len(ids)} images that {run} was trained on are not there, "
            "and a soup's BatchNorm needs them; restore them"
        )
    order = epoch_batches(rows, recipe.batch_size, recipe.seed, "soup")[: -(-ROWS // recipe.batch_size)]
    *_, augmentation = epoch_augmentations(recipe.augment, recipe.images.size, recipe.schedule.epochs)
    images_of_rows = ImageDataset(dataset, augmentation, seed=recipe.seed)
    workers = choose_workers(images.workers, device)
    with load_batches(images_of_rows, [[(int(row), 0) for row in rows] for rows in order], workers) as batches:
        yield map(_refuse_bad, batches)


def _refuse_bad(batch: Batch) -> Batch:
    for name, reason in batch.bad.items():
        raise UserError(f"{name}: {reason}; it was readable when the run was trained; restore it")
    return batch


def cook(members: Sequence[Fold], device: torch.device) -> Member:
    """The soup of members: their mean, with BatchNorm's statistics computed again unless the recipe froze them."""
    soup, backbone = load_member(members[0].folder, device), members[0].run.recipe.backbone
    if len({member.result.sha256.weights for member in members}) > 1:
        soup.model.load_state_dict(average_weights(members))
        if batch_norms(soup.model) and not (backbone.freeze_batch_stats or backbone.frozen):
            with training_batches(members[0].run, device) as batches:  # the mean over batches (Izmailov et al. 2018)
                update_bn((soup.normalize(batch.pixels.to(device)) for batch in batches), soup.model)
    return soup


@dataclass(frozen=True)
class MadeModels:
    """Models to be shown beside the ensemble, and whether the one that was written is accepted (None: no score)."""

    models: list[Candidate]
    accepted: bool | None


def make_soup(
    members: Sequence[Fold],
    kind: str,
    *,
    unseen: UnseenImages | None,
    device: torch.device,
    batch_size: int,
) -> MadeModels:
    """Write RUN/soup, uniform or greedy, of all folds of a run; without unseen images a uniform one without a score."""
    run, names, all_members = members[0].run, member_names(members), tuple(range(len(members)))
    recipe, size = run.recipe, members[0].result.parameters

    def of(soup: Ingredients) -> Member:
        return cook([members[member] for member in soup], device)

    @cache
    def predict(soup: Ingredients) -> np.ndarray:
        assert unseen is not None
        if len(soup) == 1:
            return unseen.members[soup[0]].predicted
        title = f"soup of {', '.join(names[member] for member in soup)}"
        return unseen.predict(of(soup), batch_size, title)

    models, chosen, halves = [], all_members, ()
    if unseen is not None:
        models.append(Candidate("uniform soup", size, predict(all_members), doubt=DOUBT))
    if unseen is not None and kind == "greedy":
        half = assign_folds(unseen.labels, unseen.content_hashes, 2, seed=recipe.seed)
        choice = choose(all_members, predict, labels=unseen.labels, half=half)
        chosen, halves = choice.on_all, choice.on_halves
        models.append(Candidate("greedy soup", size, choice.predicted, doubt=DOUBT))
        listed = [", ".join(names[member] for member in soup) for soup in (chosen, *halves)]
        alone = ", to which no other is of use" * (len(chosen) == 1)
        say(f"greedy soup: {listed[0]}{alone}; one half of the images chooses {listed[1]}, the other {listed[2]}")
        say("its score is cross-fitted: each half is predicted by the soup that the other half chose", style="dim")
    score = score_stand_in(unseen, models, f"{kind} soup", members=members)
    chosen_by = [tuple(member in soup for soup in halves) for member in all_members]
    made_of = [
        fold.model_copy(update={"chosen": member in chosen, "chosen_by_halves": chosen_by[member]})
        for member, fold in enumerate(score.members)
    ]
    score = score.model_copy(update={"members": tuple(made_of)})
    write_soup(run.folder / "soup", members[0], of(chosen), kind=kind, score=score)
    return MadeModels(models, score.accepted)


def write_soup(folder: Path, fold: Fold, soup: Member, *, kind: str, score: StandIn) -> None:
    """Write a model folder as a fold's is; result.json comes last and says that it is complete."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with write_atomically(folder / "model.safetensors") as temporary:
        save_weights(temporary, host_weights(soup.model))
    for name in ("config.json", "recipe.yaml"):
        shutil.copyfile(fold.folder / name, folder / name)
    result = SoupResult(
        **dict(score),
        **dict(environment(next(soup.model.parameters()).device, 1)),
        soup=kind,
        class_counts=fold.result.class_counts,
        parameters=fold.result.parameters,
        recipe=fold.result.recipe,
        folds=fold.result.folds,
        sha256=hash_files(folder, ("model.safetensors", "config.json")),
    )
    write_result(folder / "result.json", result)
