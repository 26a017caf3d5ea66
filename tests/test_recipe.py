"""The recipe's promises: what is accepted, what is refused and how, and what makes two runs the same."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from creature.errors import UserError
from creature.recipe import OLDER_KEYS, Recipe, Schedule, identity_settings, recipe_changes, recipe_warnings
from creature.recipe_file import MAX_BYTES, MAX_MISTAKES, check_recipe, dump_recipe, load_recipe
from helpers import ROOT

SMALL = "name: small\nimages: {train: [images]}\nbackbone: {name: resnet18}\n"


def load(folder: Path, more: str = "", *overrides: str, base: str = SMALL) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_bytes((base + more).encode())
    return load_recipe(path, overrides)


def mistakes(folder: Path, more: str = "", *overrides: str, base: str = SMALL) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, more, *overrides, base=base)
    return str(caught.value)


def set_all(settings: dict[str, Any], **values: Any) -> Recipe:
    for key, value in values.items():
        *parents, last = key.split("__")
        inner = settings
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return check_recipe(settings, "test")


def small(**values: Any) -> Recipe:
    return set_all({"name": "small", "images": {"train": ["images"]}, "backbone": {"name": "resnet18"}}, **values)


def models(model: type[BaseModel] = Recipe) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from models(field.annotation)


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_recipe_cannot_be_changed_in_any_part():
    recipe = small()
    assert len(list(models())) > 5
    for part in (recipe, *(getattr(recipe, name) for name in Recipe.model_fields)):
        if isinstance(part, BaseModel):
            name = next(iter(type(part).model_fields))
            with pytest.raises(ValidationError, match="frozen"):
                setattr(part, name, getattr(part, name))
    hash(recipe)


def test_lists_of_a_recipe_are_tuples(tmp_path):
    recipe = load(tmp_path, "folds: {train: [0, 2]}\naugment: {crop_scale: [0.5, 1]}\ntracking: [tensorboard]\n")
    assert (recipe.images.train, recipe.folds.train) == (("images",), (0, 2))
    assert (recipe.augment.crop_scale, recipe.tracking) == ((0.5, 1.0), ("tensorboard",))


@pytest.mark.parametrize(
    ("wrong", "key", "meant"),
    [
        ("schedule: {epoch: 3}", "schedule.epoch", "schedule.epochs"),
        ("lr: 0.1", "lr", "optimizer.lr"),
        ("epochs: 3", "epochs", "schedule.epochs"),
        ("folds: {sed: 3}", "folds.sed", "folds.seed"),
        ("sed: 3", "sed", "seed"),
        ("augmentation: {}", "augmentation", "augment"),
        ("augment: {mixup_alpha: 1}", "augment.mixup_alpha", "augment.mix_alpha"),
        ("batchsize: 3", "batchsize", "batch_size"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(tmp_path, wrong, key, meant):
    assert mistakes(tmp_path, wrong).endswith(f"1 mistake\n  {key}: no such setting; did you mean {meant}?")


def test_an_unknown_setting_that_is_like_none_is_refused_with_the_way_to_the_list(tmp_path):
    assert "optimizer.zzzz: no such setting; `creature schema`" in mistakes(tmp_path, "optimizer: {zzzz: 1}")


def test_a_dotted_setting_in_the_file_is_told_where_it_belongs(tmp_path):
    assert "images.size: no such setting here; write it within images" in mistakes(tmp_path, "images.size: 64\n")


@pytest.mark.parametrize(
    ("more", "line", "key"), [("seed: 1\nname: twice\n", 5, "name"), ("folds: {seed: 1, seed: 2}", 4, "seed")]
)
def test_a_setting_given_twice_is_refused_with_its_line(tmp_path, more, line, key):
    assert f'recipe.yaml, line {line}: found duplicate key "{key}"' in mistakes(tmp_path, more)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("1", 1.0), ("3e2", 300.0)])
def test_numbers_are_those_of_yaml_1_2(tmp_path, text, value):
    lr = load(tmp_path, f"optimizer: {{lr: {text}}}").optimizer.lr
    assert (lr, type(lr)) == (value, float)


@pytest.mark.parametrize("text", ["no", "yes", "on", "2020-01-01", "2020-01-01T10:00:00Z", "12:30:45"])
def test_words_and_dates_are_text_as_in_yaml_1_2(tmp_path, text):
    assert load(tmp_path, f"folds: {{group: {text}}}").folds.group == text


def test_no_is_refused_as_precision_with_the_choices(tmp_path):
    assert 'precision: must be one of fp32, bf16, fp16, got "no"' in mistakes(tmp_path, "precision: no")


def test_a_misspelt_choice_is_told_the_nearest_one(tmp_path):
    assert 'must be one of squash, center, border, got "centre"; did you mean center?' in mistakes(
        tmp_path, base=SMALL.replace("[images]", "[images], crop_mode: centre")
    )


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("seed: true", "seed: input should be a valid integer, got true"),
        ("seed: 3.0", "seed: input should be a valid integer, got 3.0"),
        ('seed: "3"', 'seed: input should be a valid integer, got "3"'),
        ("seed: -1", "seed: input should be greater than or equal to 0, got -1"),
        ("seed: 4294967296", "seed: input should be less than 4294967296, got 4294967296"),
        ("optimizer: {lr: .nan}", "optimizer.lr: input should be a finite number, got NaN"),
        ("optimizer: {lr: .inf}", "optimizer.lr: input should be a finite number, got Infinity"),
        ("optimizer: {lr: 0}", "optimizer.lr: input should be greater than 0, got 0"),
        ("tracking: tensorboard", 'tracking: must be a list, such as [a, b], got "tensorboard"'),
        ("tracking: [7]", "tracking.0: must be text, in quotes where it looks like a number, got 7"),
        ("schedule:", "schedule: must hold settings, indented below it, got null"),
        ("folds: {train: []}", "folds.train: must hold one value or more, such as [a, b], got []"),
    ],
)
def test_a_wrong_value_is_refused_with_setting_rule_and_value(tmp_path, more, line):
    assert f"1 mistake\n  {line}" in mistakes(tmp_path, more)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a\n", "a b", "x" * 101])
def test_a_name_that_is_no_plain_folder_name_is_refused(name):
    with pytest.raises(UserError, match="name: string should"):
        small(name=name)


def test_all_mistakes_are_told_at_once_each_with_its_value(tmp_path):
    sentence = mistakes(
        tmp_path,
        "folds: {count: 0, train: [0, x]}\nschedule: {epoch: 1, epochs: 1.5}\nprecision: half\n",
        base="images: {size: 8}\n",
    )
    assert sentence.split("\n")[0].endswith("recipe.yaml: 9 mistakes")
    assert [line.split(":")[0].strip() for line in sentence.split("\n")[1:]] == [
        "name",
        "images.train",
        "images.size",
        "folds.count",
        "folds.train.1",
        "backbone",
        "schedule.epochs",
        "schedule.epoch",
        "precision",
    ]
    assert all(f"got {value}" in sentence for value in ("8", "0", '"x"', "1.5", '"half"'))


def test_beyond_a_screenful_mistakes_are_counted(tmp_path):
    sentence = mistakes(tmp_path, "".join(f"wrong{i}: 1\n" for i in range(MAX_MISTAKES + 7))).split("\n")
    assert sentence[0].endswith(f"{MAX_MISTAKES + 7} mistakes")
    assert (len(sentence), sentence[-1]) == (MAX_MISTAKES + 2, "  and 7 more")


def test_a_setting_s_name_cannot_forge_a_line_or_steer_the_terminal(tmp_path):
    sentence = mistakes(tmp_path, '"a\\nb\\e[31m": 1\n')
    assert len(sentence.split("\n")) == 2
    assert "a\\x0ab\\x1b[31m: no such setting" in sentence


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"folds__train": [1, 5]}, "folds.train: 5 is no fold; with folds.count 5 they are 0 to 4"),
        ({"folds__train": [1, 1]}, "folds.train: names a fold twice, got [1, 1]"),
        ({"folds__count": 1}, "images.validation: required with folds.count 1"),
        ({"images__validation": ["val"]}, "images.validation: only used with folds.count 1, got folds.count 5"),
        ({"schedule__warmup_epochs": 10}, "schedule.warmup_epochs: must be less than schedule.epochs (10), got 10"),
        (
            {"schedule__min_steps": 200, "schedule__name": "cosine_warm_restarts"},
            "schedule.min_steps: more epochs would end inside a cycle of cosine_warm_restarts, got 200; set it to 0",
        ),
        ({"augment__crop_scale": [1, 0.5]}, "augment.crop_scale: must be [smallest, largest]"),
        ({"augment__crop_scale": [0, 1]}, "augment.crop_scale: must be [smallest, largest]"),
        ({"backbone__weights": "w.pt"}, "backbone.weights: must be a .safetensors file, got 'w.pt'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, line):
    with pytest.raises(UserError) as caught:
        small(**values)
    assert str(caught.value).startswith(f"test: 1 mistake\n  {line}")


def test_contradictions_are_told_at_once():
    with pytest.raises(UserError, match=r"^test: 4 mistakes\n") as caught:
        small(folds__train=[9, 9], schedule__warmup_epochs=20, augment__crop_scale=[1, 0.5])
    keys = [line.split(":")[0].strip() for line in str(caught.value).split("\n")[1:]]
    assert keys == ["folds.train", "folds.train", "schedule.warmup_epochs", "augment.crop_scale"]


def test_one_model_with_held_out_images_is_accepted():
    assert small(folds__count=1, images__validation=["val"]).train_folds == (0,)


def test_all_folds_are_trained_unless_some_are_named():
    assert small(folds__count=3).train_folds == (0, 1, 2)
    assert small(folds__count=3, folds__train=[2, 0]).train_folds == (2, 0)


def test_overrides_are_merged_before_the_check(tmp_path):
    broken = "folds: {count: 1, seed: 4}\nschedule: {epochs: none}\n"
    recipe = load(
        tmp_path,
        broken,
        "schedule.epochs=5",
        "folds.count=3",
        "folds.train=[2]",
        "optimizer.lr=1e-3",
        "seed=1",
        "seed=2",
    )
    assert (recipe.schedule.epochs, recipe.optimizer.lr, recipe.seed) == (5, 1e-3, 2)
    assert (recipe.folds.count, recipe.folds.train, recipe.folds.seed) == (3, (2,), 4)


def test_an_override_can_give_a_whole_group(tmp_path):
    assert load(tmp_path, "", "schedule={epochs: 3, name: constant}").schedule == Schedule(epochs=3, name="constant")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("schedule.epochs", "--set: must look like schedule.epochs=5, got 'schedule.epochs'"),
        ("=5", "--set: must look like schedule.epochs=5, got '=5'"),
        ("schedule..epochs=5", "--set: must look like schedule.epochs=5, got 'schedule..epochs=5'"),
        ("name.first=5", "--set name.first=5: name is one value and has no settings inside"),
        ("optimizer.lr.peak=5", "--set optimizer.lr.peak=5: optimizer.lr is one value and has no settings inside"),
        ("folds.train=[1", "--set folds.train, line 1: expected ',' or ']'"),
        ("schedule.epoch=5", "schedule.epoch: no such setting; did you mean schedule.epochs?"),
        ("schedule.epochs=", "schedule.epochs: input should be a valid integer, got null"),
        ("schedule.epochs=0", "schedule.epochs: input should be greater than or equal to 1, got 0"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path, override, sentence):
    assert sentence in mistakes(tmp_path, "optimizer: {lr: 0.1}", override)


OLDER = (
    "name: small\nbackbone: {name: resnet18}\nimages: {train: [images], fit: center}\n"
    "optimizer: {average: 0.9}\naugment: {erasing: 0.5}\naccumulate: 2\n"
)
OLDER_OVERRIDES = ("images.fit=center", "optimizer.average=0.9", "augment.erasing=0.5", "accumulate=2")
OLDER_GROUPS = ("images={train: [images], fit: center}", "optimizer={average: 0.9}", "augment={erasing: 0.5}")


def test_older_spellings_are_accepted_in_a_file_in_overrides_and_within_a_group_that_is_overridden(tmp_path):
    recipe = small(
        images__crop_mode="center",
        optimizer__ema_decay=0.9,
        augment__random_erasing=0.5,
        gradient_accumulation_steps=2,
    )
    assert load(tmp_path, base=OLDER) == recipe
    assert load(tmp_path, "", *OLDER_OVERRIDES) == recipe
    assert load(tmp_path, "", *OLDER_GROUPS, "accumulate=2") == recipe
    assert check_recipe(YAML(typ="safe").load(OLDER), "test") == recipe


def test_an_older_spelling_is_written_and_explained_in_the_new_one(tmp_path):
    written = dump_recipe(load(tmp_path, base=OLDER))
    assert all(f"{key.rpartition('.')[2]}:" in written for key in OLDER_KEYS.values())
    assert not any(re.search(rf"^ *{older.rpartition('.')[2]}:", written, re.M) for older in OLDER_KEYS)
    properties = json.dumps(Recipe.model_json_schema())
    assert not any(f'"{older.rpartition(".")[2]}":' in properties for older in OLDER_KEYS)


def test_an_override_replaces_a_setting_in_whichever_spelling(tmp_path):
    assert load(tmp_path, "optimizer: {average: 0.9}", "optimizer.ema_decay=0.99").optimizer.ema_decay == 0.99
    assert load(tmp_path, "optimizer: {ema_decay: 0.9}", "optimizer.average=0.99").optimizer.ema_decay == 0.99
    assert load(tmp_path, "", "accumulate=2", "gradient_accumulation_steps=4").gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    ("older", "key", "more"),
    [
        ("optimizer.average", "optimizer.ema_decay", "optimizer: {average: 0.9, ema_decay: 0.9}"),
        ("augment.erasing", "augment.random_erasing", "augment: {erasing: 0.5, random_erasing: 0.5}"),
        ("accumulate", "gradient_accumulation_steps", "accumulate: 2\ngradient_accumulation_steps: 2"),
    ],
)
def test_both_spellings_of_a_setting_are_refused_with_both_named(tmp_path, older, key, more):
    line = f"{key}: given twice, also by its older name {older}; remove {older}"
    assert mistakes(tmp_path, more).endswith(f"recipe.yaml: 1 mistake\n  {line}")
    sentence = mistakes(tmp_path, f"{more}\nseed: x\n")
    assert f"2 mistakes\n  {line}\n  seed: input should be a valid integer" in sentence


def test_both_spellings_within_an_overridden_group_are_refused(tmp_path):
    sentence = mistakes(tmp_path, "", "images={train: [x], fit: center, crop_mode: center}")
    assert "images.crop_mode: given twice, also by its older name images.fit" in sentence


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("optimizer: {average: 2}", "optimizer.ema_decay: input should be less than 1, got 2"),
        ("accumulate: 0", "gradient_accumulation_steps: input should be greater than or equal to 1, or auto, got 0"),
        ("optimizer: {averag: 0.9}", "optimizer.averag: no such setting; did you mean optimizer.ema_decay?"),
        ("erasing: 0.5", "erasing: no such setting; did you mean augment.random_erasing?"),
    ],
)
def test_mistakes_with_older_spellings_speak_of_the_new_ones(tmp_path, more, line):
    assert mistakes(tmp_path, more).endswith(f"1 mistake\n  {line}")


@pytest.mark.parametrize("overrides", [[], ["backbone.compile=auto"]])
def test_compile_auto_of_earlier_versions_is_false_with_a_warning(tmp_path, capsys, overrides):
    base = SMALL if overrides else SMALL.replace("resnet18", "resnet18, compile: auto")
    assert load(tmp_path, "", *overrides, base=base).backbone.compile is False
    assert "backbone.compile: auto is no longer offered, and taken as false" in capsys.readouterr().err


WORDS = ["no", "null", "~", "", " ", "1e-4", "0x10", "1_000", "2020-01-01", "a: b", "#c", "- x", "'\"\\", "y " * 300]
SIGNS = ["é \u2028 \U0001f600", "a\nb", "\x85", "\x7f"]
TEXTS = st.sampled_from(WORDS + SIGNS) | st.text(st.characters(exclude_categories=["Cs"]))  # no surrogates in YAML


@given(text=TEXTS)
def test_a_text_survives_dump_and_load(tmp_path, text):
    recipe = small(images__train=[text], folds__group=text)
    (tmp_path / "dump.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "dump.yaml") == recipe


@given(value=st.sampled_from([1e-4, 1 / 3, 1e22, 5e-324]) | st.floats(0, exclude_min=True, allow_infinity=False))
def test_a_number_survives_dump_and_load(tmp_path, value):
    recipe = small(optimizer__lr=value, optimizer__clip_norm=value)
    (tmp_path / "dump.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "dump.yaml") == recipe


def test_the_resolved_recipe_holds_every_setting_in_the_schema_s_order(tmp_path):
    def order(values: dict[str, Any], model: type[BaseModel]) -> None:
        assert list(values) == list(model.model_fields)
        for name, value in values.items():
            if isinstance(value, dict):
                inner = model.model_fields[name].annotation
                assert isinstance(inner, type)
                order(value, inner)

    (tmp_path / "dump.yaml").write_text(dump_recipe(small(seed=3)))
    order(YAML(typ="rt").load(tmp_path / "dump.yaml"), Recipe)


def test_the_schema_command_prints_json_with_a_description_of_every_setting():
    done = python("-m", "creature", "schema")
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads(done.stdout)
    described = 0
    for model in models():
        title = model.__name__
        properties = schema["properties"] if title == "Recipe" else schema["$defs"][title]["properties"]
        assert list(properties) == list(model.model_fields)
        for name, rule in properties.items():
            assert "$ref" in rule or len(rule["description"]) > 10, name
            described += "description" in rule
    assert described > 40


def test_the_schema_forbids_unknown_settings():
    schema = Recipe.model_json_schema()
    assert [part["additionalProperties"] for part in (schema, *schema["$defs"].values())] == [False] * len(
        list(models())
    )


def test_an_argument_of_schema_is_answered_with_the_usage():
    done = python("-m", "creature", "schema", "laptop")
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: creature schema" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_recipe_is_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: x\nschedule: {epoch: 1}\nprecision: no\n")
    code = (
        "import sys\nfrom creature import recipe_file\nfrom creature.console import UserError\n"
        "try:\n    recipe_file.load_recipe(sys.argv[1], ['seed=1'])\nexcept UserError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'torchvision', 'timm', 'datasets', 'accelerate', 'numpy', 'PIL')"
        " if name in sys.modules])"
    )
    done = python("-c", code, str(tmp_path / "bad.yaml"))
    assert done.returncode == 0, done.stderr
    assert "schedule.epoch: no such setting" in done.stdout
    assert done.stdout.endswith("[]\n")


FREE_CHANGES = {
    "name": "other",
    "images__train": ["elsewhere/images"],
    "images__holdout": ["holdout"],
    "images__labels": "labels.csv",
    "images__holdout_labels": "held.csv",
    "images__max_bad": 7,
    "images__workers": 0,
    "folds__train": [1],
    "backbone__weights": "w.safetensors",
    "loss__teacher": "runs/teacher",
    "checkpoint__every_epochs": 2,
    "checkpoint__every_minutes": 3,
    "device": "cpu",
    "parameters_limit": 10,
    "tracking": ["tensorboard"],
}


@pytest.mark.parametrize("key", FREE_CHANGES)
def test_what_does_not_change_the_result_does_not_change_the_identity(key):
    alone = {"folds__count": 1, "images__validation": ["held"]} if key == "loss__teacher" else {}
    before, changed = small(**alone), small(**alone, **{key: FREE_CHANGES[key]})
    assert changed != before
    assert changed.identity() == before.identity()
    assert recipe_changes(before, changed) == []


def test_the_place_of_held_out_images_does_not_change_the_identity():
    one, other = (small(folds__count=1, images__validation=[place]) for place in ("here", "there"))
    assert one.identity() == other.identity()


def test_a_recipe_keeps_the_identity_that_it_had_under_older_spellings(tmp_path):
    """Computed by the version before the settings were renamed."""
    assert load(tmp_path, base=OLDER).identity() == "3d805d9a79541e242fb40435a7accfc350ff4cbb6617ac57f1ccc83f1561c3b4"
    assert recipe_changes(load(tmp_path, base=OLDER), load(tmp_path, "", *OLDER_OVERRIDES)) == []


@pytest.mark.parametrize("golden", sorted((ROOT / "tests/golden").iterdir()), ids=lambda path: path.name)
def test_a_golden_run_s_identity_is_the_hash_of_the_settings_that_its_version_had(golden):
    saved = YAML(typ="safe").load(golden / "run/recipe.yaml")
    recipe = load_recipe(golden / "run/recipe.yaml")

    def only(settings: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        return {
            key: only(value, known[key]) if isinstance(value, dict) else value
            for key, value in settings.items()
            if key in known
        }

    text = json.dumps(only(identity_settings(recipe), saved), sort_keys=True)
    identity = json.loads((golden / "run/run.json").read_text())["identity"]
    assert hashlib.sha256(text.encode()).hexdigest() == identity


def result_settings(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every other setting, with a value that is not its default."""
    special = {
        "images__image_column": "a",
        "images__label_column": "a",
        "folds__group": "a",
        "augment__sizes": [64, 96],
        "backbone__train": "norms",
        "optimizer__name": "lion",
        "optimizer__clip_norm": 1.0,
        "optimizer__ema_decay": 0.9,
        "gradient_accumulation_steps": 2,
    }
    for name, field in model.model_fields.items():
        key, kind = prefix + name, field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from result_settings(kind, f"{key}__")
        elif key not in FREE_CHANGES and key != "images__validation":
            default = getattr(getattr(small(), prefix[:-2]) if prefix else small(), name)
            if key in special:
                yield key, special[key]
            elif isinstance(default, bool):
                yield key, not default
            elif isinstance(default, int):
                yield key, default + 1
            elif isinstance(default, float):
                yield key, default / 2 + 0.1
            elif isinstance(default, tuple):
                yield key, [0.3, 0.6]
            elif choices := [choice for choice in get_args(kind) if choice != default]:
                yield key, choices[0]
            elif key == "backbone__name":
                yield key, "resnet34"


@pytest.mark.parametrize(("key", "value"), list(result_settings()))
def test_what_changes_the_result_changes_the_identity_and_is_named(key, value):
    changed = small(**{key: value})
    assert changed.identity() != small().identity()
    (line,) = recipe_changes(small(), changed)
    assert line.startswith(f"{key.replace('__', '.')}: ")
    assert line.endswith(f" -> {json.dumps(value)}")


def test_the_identity_tests_cover_every_setting():
    covered = {*FREE_CHANGES, *(key for key, _ in result_settings()), "images__validation", "loss__name"}
    fields = {
        f"{name}__{inner}"
        for name, field in Recipe.model_fields.items()
        for inner in getattr(field.annotation, "model_fields", {})
    }
    assert covered == fields | {
        name for name, field in Recipe.model_fields.items() if not hasattr(field.annotation, "model_fields")
    }


def test_the_identity_does_not_depend_on_how_a_number_is_written():
    assert small(augment__rotation=15).identity() == small(augment__rotation=15.0).identity()


def test_changed_settings_are_named_with_both_values():
    before, after = small(seed=1), small(seed=2, optimizer__lr=0.5, name="other")
    assert recipe_changes(before, after) == ["seed: 1 -> 2", "optimizer.lr: 0.0001 -> 0.5"]


@pytest.mark.parametrize(("epochs", "near"), [(80, "70 or 150"), (69, "30 or 70"), (5, "10")])
def test_ending_inside_a_restart_cycle_is_warned_of_with_the_epochs_that_end_one(epochs, near):
    (warning,) = recipe_warnings(small(schedule__name="cosine_warm_restarts", schedule__epochs=epochs))
    assert warning.startswith(f"schedule.epochs: {epochs} ends inside a restart cycle")
    assert warning.endswith(f"cycles end at {near}")


@pytest.mark.parametrize(
    "values",
    [
        {"schedule__name": "cosine_warm_restarts", "schedule__epochs": 70},
        {"schedule__name": "cosine_warm_restarts", "schedule__epochs": 12, "schedule__warmup_epochs": 2},
        {"schedule__name": "cosine_warm_restarts", "schedule__epochs": 40, "schedule__restart_factor": 1},
        {"schedule__name": "cosine", "schedule__epochs": 80},
    ],
)
def test_ending_with_a_cycle_is_not_warned_of(values):
    assert not list(recipe_warnings(small(**values)))


def test_the_epochs_since_the_last_restart_are_counted_from_the_end_of_the_warm_up():
    (warning,) = recipe_warnings(
        small(schedule__name="cosine_warm_restarts", schedule__epochs=8, schedule__warmup_epochs=3)
    )
    assert "5 epochs after its start" in warning


@pytest.mark.parametrize(
    ("length", "factor", "ends"), [(10, 2, [10, 30, 70, 150]), (20, 1, [20, 40, 60, 80]), (80, 3, [80])]
)
def test_cycles_end_where_their_lengths_add_up(length, factor, ends):
    assert Schedule(epochs=80, restart_epochs=length, restart_factor=factor).cycle_ends() == ends


LOOP = "images: &a [*a]\n"
NINE = ", ".join(["*{0}"] * 9)
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{NINE.format(f'a{i}')}]\n" for i in range(40))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{NINE.format(f'a{i}')}]}}\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 50_000, "nested too deeply"),
        ("- " * 50_000, "nested too deeply"),
        ("? " * 50_000, "nested too deeply"),
        (SMALL + "seed: " + "[" * 150 + "]" * 150, "line 4: nested too deeply"),
        (BOMB, "line 2: *a0 is an alias"),
        (MERGE_BOMB, "line 2: *a0 is an alias"),
        (LOOP, "line 1: *a is an alias"),
        (
            SMALL + "seed: !!python/object/apply:os.system [exit]",
            "line 4: tag:yaml.org,2002:python/object/apply:os.system is a tag",
        ),
        (SMALL + "seed: !!bool x", "line 4: tag:yaml.org,2002:bool is a tag"),
        (SMALL + "seed: [" + "x, " * 60_000 + "]", "too many values"),
        (SMALL + "? [1, 2]\n: 3\n", "the names of settings are plain words"),
        (SMALL + "? {a: b}\n: 3\n", "line 4: found unhashable key"),
        (SMALL + "seed: " + "9" * 5000, "no YAML: Exceeds the limit"),
        (SMALL + "seed: " + "9" * 4000, "seed: input should be less than"),
        (SMALL + 'backbone_: "\\ud800"\n', "lone surrogate"),
        (SMALL + "x" * 20_000 + ": 3\n", "could not find expected ':'"),
        (SMALL + "\tseed: 1\n", "line 4: found character '\\t'"),
        (SMALL + "---\nname: other\n", "another document"),
        (SMALL + "\0", "unacceptable character"),
        ("name: {", "line 1: expected the node content"),
        ("", "got nothing"),
        ("# only a comment\n", "got nothing"),
        ("[name, small]", "got a list"),
        ("small", "got a str"),
        ("#" * (MAX_BYTES + 1), "is larger than 1 MiB"),
    ],
)
def test_a_hostile_or_broken_file_is_refused_in_one_sentence(tmp_path, text, sentence):
    assert sentence in mistakes(tmp_path, base=text)


def test_a_long_value_is_cut_in_the_message(tmp_path):
    assert len(mistakes(tmp_path, f"precision: {'x' * 100_000}")) < 500


@pytest.mark.parametrize("factor", [1001, 10**400])
def test_a_schedule_that_no_number_could_hold_is_refused(factor):
    with pytest.raises(UserError, match="restart_factor: input should be less than or equal to 1000"):
        small(schedule__restart_factor=factor)


def test_a_file_with_byte_order_mark_and_windows_line_ends_is_read(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_recipe(tmp_path / "recipe.yaml") == small()


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path):
    (tmp_path / "latin").write_bytes("name: für".encode("latin-1"))
    for name, reason in (("none", "No such file"), (".", "Is a directory"), ("latin", "no UTF-8 text")):
        with pytest.raises(UserError, match=f"recipe: cannot read .*{reason}"):
            load_recipe(tmp_path / name)


def wrong_settings(
    schema: dict[str, Any], part: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, list[str]]]:
    """(key, wrong value, what must be said) for every setting: its name misspelt, another type, beyond each bound."""
    for name, rule in part["properties"].items():
        key = prefix + name
        if reference := rule.get("$ref"):
            yield key, 7, [f"{key}: must hold settings", "got 7"]
            yield from wrong_settings(schema, schema["$defs"][reference.rpartition("/")[2]], f"{key}.")
            continue
        yield f"{key}{name[-1]}", 7, ["no such setting", f"did you mean {key}?"]
        rule = next((one for one in rule.get("anyOf", ()) if one.get("type") != "null"), rule)
        if choices := rule.get("enum"):
            named = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]
            yield key, "nonsense", [f"{key}: must be one of {', '.join(named)}", 'got "nonsense"']
            continue
        other, rule_said = {
            "string": (7, "must be text"),
            "array": (7, "must be a list"),
            "integer": (1.5, "valid integer"),
            "number": ("1,5", "valid number"),
            "boolean": ("yes", "valid boolean"),
        }[rule["type"]]
        yield key, other, [f"{key}: ", rule_said, f"got {json.dumps(other)}"]
        for bound, beyond, word in (
            ("minimum", -1, "greater than or equal to"),
            ("exclusiveMinimum", 0, "greater than"),
            ("maximum", 1, "less than or equal to"),
            ("exclusiveMaximum", 0, "less than"),
        ):
            if bound in rule:
                value = rule[bound] + beyond
                yield key, value, [f"{key}: ", f"{word} {int(rule[bound])}", f"got {int(value)}"]


def test_every_setting_s_mistakes_are_told_with_key_rule_and_value_and_without_anything_heavy(tmp_path):
    schema = Recipe.model_json_schema()
    wrong = list(wrong_settings(schema, schema))
    assert len(wrong) >= 60
    base = {"name": "small", "images": {"train": ["images"]}, "backbone": {"name": "resnet18"}}
    for number, (key, value, _) in enumerate(wrong):
        settings = json.loads(json.dumps(base))
        *parents, last = key.split(".")
        inner = settings
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
        (tmp_path / f"{number:03d}.yaml").write_text(json.dumps(settings))
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom creature.recipe_file import load_recipe\n"
        "from creature.console import UserError\nsaid = []\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        load_recipe(path)\n        said.append('accepted')\n"
        "    except UserError as error:\n        said.append(str(error))\n"
        "print(json.dumps([said, [n for n in ('torch', 'timm', 'datasets', 'numpy', 'PIL') if n in sys.modules]]))"
    )
    done = python("-c", code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    message, heavy = json.loads(done.stdout)
    assert heavy == []
    for (key, value, parts), text in zip(wrong, message, strict=True):
        assert key in text and all(part in text for part in parts), (key, value, parts, text)
