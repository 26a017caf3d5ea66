"""The model card: what was measured, how it was trained, how to use it, and what it must not be used for.

Numbers come from the run's folder alone, the license and the images' origin from a person.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData
from huggingface_hub import eval_result_entries_to_yaml as entries_to_yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML

from creature import __version__
from creature.errors import UserError
from creature.hub_download import HUB
from creature.metrics.accuracy import Count
from creature.publishing.terms import Terms
from creature.recipe import Backbone
from creature.reporting.class_scores import COLUMNS, score_classes
from creature.reporting.figures import CaptionedFigure, curve_figures, run_figures, to_bytes
from creature.reporting.study import StudyRun
from creature.reporting.tables import RECORDED, Value
from creature.reporting.tables import escape_markdown as escape
from creature.training.source import find_source, portable_name


@dataclass(frozen=True)
class Score:
    """Correct predictions of images that the predicting models were not trained on."""

    who: str
    images: str
    split: str
    count: Count
    selected: bool = False

    def __str__(self) -> str:
        return f"{self.count}{' selected' * self.selected}"


def measured(run: StudyRun) -> list[Score]:
    """Every score of the run: out of fold, and on the holdout and labelled images that creature ensemble predicted."""
    first, several, selected = run.folds[0], len(run.folds) > 1, run.selected
    alone = f"{first.name} alone"
    scores = []
    if several:
        who = f"{len(run.one_repeat)} members, each image by the one that never saw it"
        scores.append(Score(who, "out of fold", "train", count=run.held.count, selected=selected))
    if run.unseen.models > 1:
        who = f"ensemble of {run.unseen.models} members, for each image those that never saw it"
        scores.append(Score(who, "out of fold", "train", count=run.unseen.rows.count, selected=selected))
    scores.append(Score(alone, "held out of it", "train", count=first.result.count, selected=selected))
    if selected:
        who, images = ("the members", "out of fold") if several else (alone, "held out of it")
        scores.append(Score(f"{who}, last epoch", images, "train", count=run.last_score))
    models = {f"ensemble of {len(run.folds)}": None} if several else {}
    for split, name in RECORDED.items():
        for who, member in (models | {alone: first.name}).items():
            if rows := run.unseen_images(split, member):
                mirror = ", with mirror images" * run.recorded[split].mirror
                scores.append(Score(f"{who}{mirror}", name, name, count=rows.count))
    return scores


def base_model(backbone: Backbone) -> str | None:
    """The Hub's name of the weights that training started from; None for random ones, and those of a folder."""
    if not (backbone.pretrained or backbone.weights):
        return None
    if backbone.name.startswith(HUB):
        return backbone.name.removeprefix(HUB).partition("@")[0]
    if not timm.is_model(backbone.name.partition(".")[0]):
        return None
    config = timm.get_pretrained_cfg(backbone.name)
    tag = f".{config.tag}" if config and config.tag and "." not in backbone.name else ""
    return f"timm/{backbone.name}{tag}"


def base_license(backbone: Backbone) -> str | None:
    """The licence of the weights that training started from, as timm or the repository's card names it."""
    if not (backbone.pretrained or backbone.weights):
        return None
    try:
        source = find_source(backbone.name)
    except UserError:  # gone since
        return None
    return source.license


def write_cards(run: StudyRun, branches: Mapping[str, Path], repo: str, *, terms: Terms, onnx: bool) -> None:
    """Write every branch's README.md, and into main the figures, and `.eval_results` for a holdout of the Hub."""
    main = branches["main"]
    figures = [*curve_figures([run], run), *run_figures(run)]
    for figure in figures:
        (main / f"{figure.name}.png").write_bytes(to_bytes(figure.figure, "png"))
    _write(main / "README.md", _main_card(run, repo, terms=terms, figures=figures, onnx=onnx))
    for branch, folder in branches.items():
        if branch != "main":
            _write(folder / "README.md", _member_card(run, branch, repo, terms=terms))
    if entries := list(_hub_results(run)):
        (main / ".eval_results").mkdir()
        with (main / ".eval_results" / "holdout.yaml").open("w", encoding="utf-8", newline="\n") as file:
            YAML(typ="safe", pure=True).dump(entries_to_yaml(entries), file)


def _write(path: Path, text: str) -> None:
    path.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def _front_matter(run: StudyRun, repo: str, terms: Terms, *, scores: Sequence[Score]) -> str:
    sources = [*run.recipe.images.train, *run.recipe.images.validation, *run.recipe.images.holdout]
    of_hub = sorted({source.split(":")[1] for source in sources if source.startswith("hub:")})
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=of_hub[0] if of_hub else "imagefolder",
            dataset_name=of_hub[0] if of_hub else "the owner's images",
            dataset_split=score.split,
            metric_type="accuracy",
            metric_value=round(score.count.accuracy, 4),
            metric_name=f"{score.who}, {score.images}: {score}",
        )
        for score in scores
    ]
    data = ModelCardData(
        license=terms.license,
        library_name="timm",
        pipeline_tag="image-classification",
        base_model=base_model(run.recipe.backbone),
        datasets=of_hub or None,
        tags=["image-classification", "timm", "transformers", "creature"],
        metrics=["accuracy"],
        model_name=repo.partition("/")[2],
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---"


def _main_card(run: StudyRun, repo: str, *, terms: Terms, figures: Sequence[CaptionedFigure], onnx: bool) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["text"] = escape
    scores = measured(run)
    return environment.get_template("card.md").render(
        front_matter=_front_matter(run, repo, terms, scores=scores),
        name=repo.partition("/")[2],
        repo=repo,
        run=run,
        recipe=run.recipe,
        first=run.results[0],
        folds=[fold.name for fold in run.folds],
        class_names=run.held.class_names,
        base=base_model(run.recipe.backbone),
        backbone=portable_name(run.recipe.backbone.name),
        base_license=base_license(run.recipe.backbone),
        scores=scores,
        class_columns=COLUMNS,
        classes=[map(_show, row) for row in score_classes(run.held)],
        figures=figures,
        terms=terms,
        onnx=onnx,
        version=__version__,
    )


def _show(value: Value) -> str:
    return escape(f"{value:.3f}" if isinstance(value, float) else str(value))


def _member_card(run: StudyRun, branch: str, repo: str, *, terms: Terms) -> str:
    result = run.results[[fold.name for fold in run.folds].index(branch)]
    score = Score(f"{branch} alone", "held out of it", "train", count=result.count, selected=run.selected)
    return (
        f"{_front_matter(run, repo, terms, scores=[score])}\n\n# {escape(repo.partition('/')[2])}, {branch}\n\n"
        f"One of {len(run.folds)} members of the ensemble that [main](https://huggingface.co/{repo}) describes; \n"
        f"accuracy on the images held out of it {score}."
    )


def _hub_results(run: StudyRun) -> Iterator[EvalResultEntry]:
    """The published model's score on a holdout that is one data set of the Hub."""
    sources, rows = run.recipe.images.holdout, run.unseen_images("holdout", run.folds[0].name)
    if rows and len(sources) == 1 and sources[0].startswith("hub:"):
        _, dataset, *split = sources[0].split(":")
        note = f"{run.folds[0].name} alone: {rows.count}"
        accuracy = round(rows.count.accuracy, 4)
        yield EvalResultEntry(dataset_id=dataset, task_id=split[0] if split else "train", value=accuracy, notes=note)
