"""One model of several: what `creature ensemble --soup` and `--distill` make, beside the members and their ensemble."""

import argparse
from collections.abc import Mapping, Sequence

from creature.ensembling import acceptance
from creature.ensembling.distill import make_student
from creature.ensembling.recorded import PredictedImages
from creature.ensembling.soup import make_soup
from creature.inference.members import choose_device
from creature.recipe import Recipe
from creature.run import Fold


def make_one(
    args: argparse.Namespace,
    student: Recipe | None,
    members: Sequence[Fold],
    *,
    tables: Mapping[str, PredictedImages],
) -> None:
    """Make one model of the members, or several, and show each beside them and the ensemble."""
    run, table = members[0].run, tables.get("images" if args.labels else "holdout")
    unseen = acceptance.find_unseen(table, members) if table else None
    device, batch_size, made = choose_device(args.device), args.batch_size, {}
    if args.soup:
        made[run.folder / "soup"] = make_soup(members, args.soup, unseen=unseen, device=device, batch_size=batch_size)
    if student:
        assert unseen  # distillation is refused without
        made[run.folder / "student/fold-0"] = make_student(
            args.distill, student, run, unseen=unseen, device=device, batch_size=batch_size
        )
    if unseen:
        acceptance.show_scores(unseen, [model for models in made.values() for model in models.models])
    for folder, models in made.items():
        acceptance.advise(folder, run.folder, models.accepted)
