"""One command for everything: `creature VERB`, or `python -m creature VERB`.

A verb's module is imported when it is asked for, so that `creature --help` is there at once.
"""

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Verb:
    """A row of the table; its module has `parse(argv)`, and `main(argv)` that returns the exit code."""

    name: str
    help: str
    module: str  # of the package, or one of the three scripts, which lie beside it


GROUPS = {
    "Train and predict": (
        Verb("train", "train the folds of a recipe", "train.py"),
        Verb("ensemble", "combine and score trained folds; predict with all of them", "ensemble.py"),
        Verb("predict", "predict images with a fold, an ensemble, a published model or an ONNX file", "predict.py"),
    ),
    "Recipes": (
        Verb("recipes", "list the recipes that come with creature, or print one", "creature.shipped"),
        Verb("schema", "print the JSON schema of recipes, for editors", "creature.recipe_file"),
    ),
    "Images": (
        Verb("inspect", "look at a folder of images before any training", "creature.data.describe"),
        Verb("draw", "draw the images of the quickstart", "creature.samples"),
    ),
    "Scores": (
        Verb("report", "compare runs on one page, with tables and figures", "creature.reporting.report"),
        Verb("labels", "list labels that may be wrong", "creature.reporting.labels"),
        Verb("calibrate", "show what sets of labels and a least precision are worth", "creature.ensembling.calibrate"),
    ),
    "Sharing": (
        Verb("publish", "verify a run and upload it to the Hugging Face Hub", "creature.publishing.publish"),
        Verb("check", "check a downloaded model against its manifest", "creature.publishing.check"),
        Verb("export", "write a model as one ONNX file", "creature.publishing.onnx_export"),
        Verb("demo", "serve a web page that answers for dropped images", "creature.publishing.demo"),
    ),
}
VERBS = {verb.name: verb for verbs in GROUPS.values() for verb in verbs}


def overview() -> str:
    """The help of the whole command."""
    lines = [
        "usage: creature VERB ...",
        "",
        "Fine-tune image classifiers in folds, score them honestly, share the weights.",
    ]
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {verb.name:<10} {verb.help}" for verb in verbs)]
    return "\n".join([*lines, "", "creature VERB --help explains one of them."])


def load_verb(name: str) -> ModuleType:
    """Import a verb's module; raises UserError for an unknown verb, with the nearest."""
    verb = VERBS.get(name)
    if verb is None:
        from difflib import get_close_matches

        from creature.errors import UserError

        near = get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"creature {name}: no such verb; {hint}creature --help lists all")
    if verb.module.endswith(".py"):
        from creature.shipped import load_script

        return load_script(verb.module.removesuffix(".py"))
    return import_module(verb.module)


def main() -> int:
    """Run the verb that the command line names, and exit as it says."""
    name, *argv = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        try:
            print(overview(), file=sys.stdout if name else sys.stderr, flush=True)
        except BrokenPipeError:  # the reader of a pipe has read enough; console.run would import too much for this
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        return 0 if name else 2
    if name == "--version":
        from creature import __version__

        print(f"creature {__version__}")
        return 0
    from creature.console import run

    sys.argv = [f"creature {name}", *argv]  # the name by which the scripts' help calls itself
    run(lambda: load_verb(name).main(argv))


if __name__ == "__main__":
    sys.exit(main())
