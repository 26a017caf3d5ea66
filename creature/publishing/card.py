"""The model card: what was measured, how it was trained, how to use it, and what it must not be used for.

Numbers come from the run's folder alone, the license and the images' origin from a person.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData
from huggingface_hub import eval_result_entries_to_yaml as entries_to_yaml
from ruamel.yaml import YAML

from creature import __version__
from creature.metrics.accuracy import Count
from creature.publishing.terms import Terms
from creature.recipe import Backbone
from creature.reporting.class_scores import COLUMNS, score_classes
from creature.reporting.figures import CaptionedFigure, curve_figures, run_figures, to_bytes
from creature.reporting.study import StudyRun
from creature.reporting.tables import RECORDED, Value
from creature.reporting.tables import escape_markdown as escape


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
    """The Hub's name of the weights that training started from; None where it started from scratch."""
    if not (backbone.pretrained or backbone.weights):
        return None
    config = timm.get_pretrained_cfg(backbone.name)
    tag = f".{config.tag}" if config and config.tag and "." not in backbone.name else ""
    return f"timm/{backbone.name}{tag}"


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


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


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


def _main_card(
    run: StudyRun, repo: str, *, terms: Terms, figures: Sequence[CaptionedFigure], onnx: bool
) -> Iterator[str]:
    scores, base = measured(run), base_model(run.recipe.backbone)
    yield _front_matter(run, repo, terms, scores=scores)
    yield f"\n# {escape(repo.partition('/')[2])}\n"
    yield from _introduction(run, base)
    yield "\n## How good it is\n"
    yield from _scores(run, scores)
    yield "\n## How to use it\n"
    yield from _usage(repo, run, onnx)
    yield "\n## Classes\n"
    yield from _classes(run)
    for figure in figures:
        yield f"![{escape(figure.caption)}]({figure.name}.png)\n"
    yield "## How it was trained\n"
    yield from _table(("", ""), _training(run, base))
    yield "\n[recipe.yaml](recipe.yaml) has every setting, [folds.arrow](folds.arrow) which image, by its content,"
    yield "was held out of which fold, and [ensemble.json](ensemble.json) the members with the hashes of their weights."
    yield "\n## Intended use and limits\n"
    yield from _limits(run)
    yield "\n## License and data\n"
    yield f"Weights: {escape(terms.license)}. Images: {escape(terms.data)}"


def _introduction(run: StudyRun, base: str | None) -> Iterator[str]:
    names = run.held.class_names
    listed = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} and {len(names) - 20} more"
    start = f"fine-tuned from [{base}](https://huggingface.co/{base})" if base else "trained from scratch"
    yield (
        f"Tells {len(names)} classes of images apart: {escape(listed)}. "
        f"`{run.recipe.backbone.name}`, {start}, on {run.results[0].images_trained} images."
    )
    if len(run.folds) > 1:
        yield (
            f"\n`main` is one model, {run.folds[0].name} of {len(run.folds)}. The others are the branches "
            f"{', '.join(f'`{fold.name}`' for fold in run.folds)}; together they are the ensemble"
            + (" that is scored below." if run.unseen.models == 1 else ".")
        )


def _scores(run: StudyRun, scores: Sequence[Score]) -> Iterator[str]:
    columns = ("who", "images", "accuracy, 95 % interval")
    yield from _table(columns, [(score.who, score.images, str(score)) for score in scores])
    yield "\nNo score is of images that the predicting model was trained on; intervals are Wilson's."
    if run.unseen.models > 1:
        yield (
            f"The folds were drawn {run.recipe.folds.repeats} times, so that each image has members that never saw "
            f"it, one of each repeat. Their ensemble stands in for that of all {len(run.folds)}, which is larger and "
            "cannot be scored on these images."
        )
    if run.selected:
        yield "`selected`: the epoch was chosen on these images, so the score flatters; the last epoch's does not."


def _classes(run: StudyRun) -> Iterator[str]:
    yield f"Out of fold, n = {run.held.count.n}; recall with its 95 % interval.\n"
    yield "<details><summary>Every class</summary>\n"
    yield from _table(COLUMNS, [map(_show, scores) for scores in score_classes(run.held)])
    yield "\n</details>\n"


def _usage(repo: str, run: StudyRun, onnx: bool) -> Iterator[str]:
    yield f"""With [timm](https://github.com/huggingface/pytorch-image-models):

```python
import timm
from PIL import Image

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
view = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
probabilities = model(view(Image.open("photo.jpg").convert("RGB"))[None]).softmax(-1)[0]
print(model.pretrained_cfg["label_names"][probabilities.argmax()], probabilities.max().item())
```

With [transformers](https://github.com/huggingface/transformers):

```python
from transformers import pipeline

print(pipeline("image-classification", model="{repo}")("photo.jpg"))
```
"""
    if onnx:
        size = run.recipe.images.size
        yield f"""With [ONNX Runtime](https://onnxruntime.ai), without torch; [model.onnx](model.onnx) takes uint8
(N, 3, {size}, {size}), the image resized by Pillow, and gives probabilities:

```bash
creature predict model.onnx photos/
```
"""
    members = f"\ncreature predict hf-hub:{repo} photos/ --members      # the ensemble" if len(run.folds) > 1 else ""
    yield f"""With creature, which made it:

```bash
creature predict hf-hub:{repo} photos/ --out predictions.csv{members}
```

`golden.png` must give the logits in `golden.json`, on a CPU in fp32 to within 1e-4, whatever it is loaded with."""


def _training(run: StudyRun, base: str | None) -> Iterator[tuple[str, str]]:
    recipe, first = run.recipe, run.results[0]
    seconds = sum(result.seconds for result in run.results)
    yield "backbone", f"{recipe.backbone.name}, {first.parameters / 1e6:.1f} M parameters"
    yield "pretraining", f"{base}" if base else "none"
    images = recipe.images
    yield (
        "evaluation view",
        f"{images.size} x {images.size} pixels, {images.crop_mode}, normalization: {images.normalize}",
    )
    repeats = f", {recipe.folds.count} drawn {recipe.folds.repeats} times" if recipe.folds.repeats > 1 else ""
    yield "folds", f"{len(run.folds)} of {recipe.folds.members}{repeats}, seed {recipe.folds.seed}"
    yield "schedule", f"{recipe.schedule.epochs} epochs, {recipe.schedule.name}, batch size {recipe.batch_size}"
    yield "optimizer", f"{recipe.optimizer.name}, learning rate {recipe.optimizer.lr:g}, seed {recipe.seed}"
    yield "augmentation", f"mix {recipe.augment.mix}, policy {recipe.augment.policy}"
    yield "cost", f"{seconds / 60:.1f} minutes of training steps on {first.device}, {recipe.precision}"
    versions = ", ".join(f"{name} {first.versions[name]}" for name in ("torch", "timm", "accelerate"))
    yield "software", f"creature {__version__}, {versions}"


def _limits(run: StudyRun) -> Iterator[str]:
    held, counts = run.held, run.results[0].class_counts
    rare = min(range(len(counts)), key=counts.__getitem__)
    amount = f"Each class has {max(counts)} images"
    if min(counts) < max(counts):
        amount = f"Classes have from {min(counts)} ({escape(held.class_names[rare])}) to {max(counts)} images"
    yield (
        f"- It knows {len(held.class_names)} classes and no others: an image of anything else gets one of these "
        "labels, often with a high probability."
    )
    yield "- The scores hold for images like those that it was scored on: the same cameras, places and seasons."
    yield f"- {amount}; the table above shows which are told apart poorly."
    mended = ", and what a temperature mends, by which `creature predict --coverage 0.95` divides"
    yield (
        "- Probabilities are not calibrated; the reliability figure shows how far they can be taken at their word"
        f"{'' if run.calibrated is None else mended}."
    )
    yield "- Not for decisions about people, nor where a wrong label harms someone, without a person who checks."


def _member_card(run: StudyRun, branch: str, repo: str, *, terms: Terms) -> Iterator[str]:
    result = run.results[[fold.name for fold in run.folds].index(branch)]
    score = Score(f"{branch} alone", "held out of it", "train", count=result.count, selected=run.selected)
    yield _front_matter(run, repo, terms, scores=[score])
    yield f"\n# {escape(repo.partition('/')[2])}, {branch}\n"
    yield f"One of {len(run.folds)} members of the ensemble that [main](https://huggingface.co/{repo}) describes; "
    yield f"accuracy on the images held out of it {score}."


def _hub_results(run: StudyRun) -> Iterator[EvalResultEntry]:
    """The published model's score on a holdout that is one data set of the Hub."""
    sources, rows = run.recipe.images.holdout, run.unseen_images("holdout", run.folds[0].name)
    if rows and len(sources) == 1 and sources[0].startswith("hub:"):
        _, dataset, *split = sources[0].split(":")
        note = f"{run.folds[0].name} alone: {rows.count}"
        accuracy = round(rows.count.accuracy, 4)
        yield EvalResultEntry(dataset_id=dataset, task_id=split[0] if split else "train", value=accuracy, notes=note)


def _table(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(escape, columns))} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(map(escape, row))} |"


def _show(value: Value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
