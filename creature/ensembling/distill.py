"""Distillation: one network that learns what members predict of images that they never saw. N rows, K classes."""

import json
from pathlib import Path

import numpy as np
import torch

from creature.console import say
from creature.data.folds import FoldTable
from creature.ensembling.acceptance import Candidate, UnseenImages, score_stand_in
from creature.ensembling.out_of_fold import unseen_rows
from creature.ensembling.soup import MadeModels
from creature.errors import UserError
from creature.inference.members import load_member
from creature.member_folds import check_members, find_members
from creature.metrics.blend import blend
from creature.recipe import Recipe, recipe_changes
from creature.recipe_file import load_recipe
from creature.results import write_result
from creature.run import Run
from creature.shipped import find_recipe, load_script
from creature.training.run_folder import contents_of
from creature.training.signals import listen
from creature.training.train_data import hash_contents

SHARE = 0.5  # of a target that is the teacher's
DOUBT = "it has not learned what they know: train it for longer, or take another recipe"


def soft_targets(teacher: Path, folds: FoldTable) -> torch.Tensor:
    """Targets (N, K) for a student's rows: half the label, half the probabilities by members that never saw the image.

    Hinton et al. 2015, but out of fold: of an image that it was trained on, a member would only repeat the label.
    Held-out rows have their label alone. Raises UserError unless teacher and student are trained on the same
    images with the same labels: the student is scored on what it holds out, and no teacher may have seen that either.
    """
    members = find_members([teacher])
    check_members(members)
    table = members[0].run.fold_table
    if table.class_names != folds.class_names:
        raise UserError(f"loss.teacher: {teacher} was trained on other classes; name a run on the same images")
    rows = unseen_rows(members)
    probabilities = dict(zip(rows.content_hashes, blend(rows.logits).astype(np.float32), strict=True))
    contents, held = folds.hashes.to_pylist(), folds.held_out(0)
    known, trained = set(table.hashes.to_pylist()), {contents[row] for row in np.flatnonzero(~held)}
    if both := known & {contents[row] for row in np.flatnonzero(held)}:
        raise UserError(
            f"images.validation: {teacher} was trained on {len(both)} of these images, so they cannot score its "
            "student; name images that no fold saw"
        )
    if trained != known:
        raise UserError(
            f"loss.teacher: {teacher} is a run on other images: {len(known - trained)} of its own are not in "
            f"images.train, and {len(trained - known)} there are none of its own; name the same images"
        )
    if without := trained - probabilities.keys():
        raise UserError(
            f"loss.teacher: for {len(without)} images {teacher} has no member that never saw them; train all of its "
            "folds"
        )
    targets = np.eye(len(folds.class_names), dtype=np.float32)[folds.labels]
    for row in np.flatnonzero(~held).tolist():
        targets[row] = (1 - SHARE) * targets[row] + SHARE * probabilities[contents[row]]
    return torch.from_numpy(targets)


def student_recipe(path: str, run: Run) -> Recipe:
    """The recipe of a run's student: another's settings, with the run's images, its holdout held out.

    Of the same backbone it starts from the run's file of weights, unless it names its own. Raises UserError where there
    are no images to hold out, or the run has a student of another recipe.
    """
    file = find_recipe(path)
    if not file.is_file():
        raise UserError(f"--distill: {path} is no file; name the recipe of a student, such as recipes/student.yaml")
    of_run, wanted = run.recipe, load_recipe(file)
    teacher, same = of_run.images, of_run.backbone.name == wanted.backbone.name
    held_out = wanted.images.validation or wanted.images.holdout or teacher.holdout
    if not held_out:
        raise UserError(
            f"--distill: a student holds out images that no fold saw, and neither {run} nor {path} names any; set "
            f"images.holdout in {path}"
        )
    if wanted.checkpoint.select == "best":
        raise UserError(f"--distill: checkpoint.select in {path} must be last, or a selected epoch would be scored")
    changes = {
        "folds.count": 1,
        "folds.repeats": 1,
        "folds.train": None,
        "loss.teacher": str(run),
        "backbone.weights": wanted.backbone.weights or (of_run.backbone.weights if same else None),
        "images.train": teacher.train,
        "images.validation": held_out,
        **{f"images.{name}": getattr(teacher, name) for name in ("labels", "image_column", "label_column", "max_bad")},
    }
    recipe = load_recipe(file, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    saved = run.folder / "student/recipe.yaml"
    if saved.exists() and (differing := recipe_changes(load_recipe(saved), recipe)):
        raise UserError(
            f"--distill: {saved.parent} is by another recipe; remove it for a new student. These settings differ:\n  "
            + "\n  ".join(differing)
        )
    if saved.exists() and contents_of(saved.parent)["teacher"] != hash_contents(None, recipe.loss.teacher)["teacher"]:
        raise UserError(
            f"--distill: {saved.parent} learned from other predictions than those that {run} has now; remove it for a "
            "new student"
        )
    return recipe


def make_student(
    path: str, recipe: Recipe, run: Run, *, unseen: UnseenImages, device: torch.device, batch_size: int
) -> MadeModels:
    """Train RUN/student as train.py does, or go on with it; its score on images that no fold saw is written there."""
    say(f"a student of {run}, by {path}, on all of its images")
    train, student = load_script("train"), run.folder / "student"
    with listen() as stop:
        train.train(recipe, student, resume=(student / "recipe.yaml").exists(), stop=stop, own_process=True)
    (fold,) = find_members([student])
    check_members([fold])
    predicted = unseen.predict(load_member(fold.folder, device, fused=True), batch_size, "student")
    model = Candidate("student", fold.result.parameters, predicted, doubt=DOUBT)
    result = score_stand_in(unseen, [model], model.name, members=run.folds)
    write_result(student / "result.json", result)
    return MadeModels([model], result.accepted)
