"""Publishing and using a model through the real client and a Hub on the loopback."""

import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, close_session

import ensemble
import predict
import train
from creature.data.sources import SourceFormat, SourceSpec, read_source
from creature.errors import UserError
from creature.inference.classifier import load
from creature.inference.inputs import find_shards
from creature.publishing import hub as sharing
from creature.publishing import publish
from creature.publishing.hub import check_access
from creature.publishing.terms import find_terms
from creature.recipe import Backbone
from creature.storage import file_hash
from creature.training import source
from creature.training.backbone import reach_weights
from helpers.fold_files import folds_rows
from helpers.hub import READER, STRANGER, WRITER, Fault, Hub, serve
from helpers.runs import read_csv

TERMS = ("--license", "apache-2.0", "--data", "drawn by a program")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def client(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client of this process takes the server for the Hub, with an empty cache of its own."""
    hub.faults.clear()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._http.http_backoff_sleep", lambda *_: None, raising=False)
    monkeypatch.setenv("HF_TOKEN", WRITER)


@pytest.fixture(scope="module")
def run_copy(run: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three folds whose ensemble was scored on the test images."""
    folder = tmp_path_factory.mktemp("run_copy") / "tiny"
    shutil.copytree(run, folder)
    ensemble.main([str(folder), "--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv")])
    return folder


@pytest.fixture(scope="module")
def built(run_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Its folders, ready to be published."""
    folder = tmp_path_factory.mktemp("built") / "tiny"
    shutil.copytree(run_copy, folder, ignore=shutil.ignore_patterns("export"))
    return publish.build(folder, "me/drawn", find_terms(folder, "apache-2.0", "drawn by a program"))


@pytest.fixture
def published(hub: Hub, run_copy: Path) -> str:
    """The run, published once for all tests."""
    if "models/me/drawn" not in hub.repos:
        assert publish.main([str(run_copy), "me/drawn", *TERMS]) == 0
    return "me/drawn"


def fresh(hub: Hub, cache: Path, *words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Another process, which knows nothing of this project, with the server as its Hub."""
    return subprocess.run(
        [python, *words], env=os.environ | hub.environment(cache), capture_output=True, text=True, check=False,
        cwd=cache, timeout=300,
    )  # fmt: skip


ONLY_TIMM = """
import sys, json
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"creature", "accelerate", "datasets", "evaluate", "transformers", "pydantic"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""
GOLDEN = """
import sys, json
from pathlib import Path
import timm, torch
from PIL import Image
from huggingface_hub import hf_hub_download
for revision in ("main", "fold-1"):
    golden = json.loads(Path(hf_hub_download("me/drawn", "golden.json", revision=revision)).read_text())
    image = Image.open(hf_hub_download("me/drawn", golden["picture"], revision=revision)).convert("RGB")
    name = "hf-hub:me/drawn" if revision == "main" else f"hf-hub:me/drawn@{revision}"
    model = timm.create_model(name, pretrained=True).eval()
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        logits = model(view(image)[None])[0]
    assert model.pretrained_cfg["label_names"] == golden["labels"]
    torch.testing.assert_close(logits, torch.tensor(golden["logits"]), atol=1e-5, rtol=0)
    print(revision, "gives its golden outputs")
assert "creature" not in sys.modules
"""


def test_a_process_with_timm_alone_gets_the_golden_outputs_of_main_and_of_a_member(hub, published, tmp_path):
    done = fresh(hub, tmp_path, "-c", ONLY_TIMM + GOLDEN)
    assert done.stdout.splitlines() == [f"{name} gives its golden outputs" for name in ("main", "fold-1")], done.stderr


def test_a_virtual_environment_with_timm_alone_does_too(hub, published, tmp_path):
    python = os.environ.get("CREATURE_TIMM_PYTHON")
    if not python:
        pytest.skip("CREATURE_TIMM_PYTHON names no interpreter with timm alone; .ci/run makes one")
    assert "creature" not in fresh(hub, tmp_path, "-m", "pip", "list", python=python).stdout
    done = fresh(hub, tmp_path, "-c", GOLDEN, python=python)
    assert len(done.stdout.splitlines()) == 2, done.stderr


PIPELINE = """
import json
from pathlib import Path
from huggingface_hub import hf_hub_download
import torch
from transformers import pipeline
golden = json.loads(Path(hf_hub_download("me/drawn", "golden.json")).read_text())
said = pipeline("image-classification", model="me/drawn")(hf_hub_download("me/drawn", "golden.png"), top_k=5)
best = torch.tensor(golden["logits"]).softmax(0).topk(5)
assert [row["label"] for row in said] == [golden["labels"][k] for k in best.indices]
torch.testing.assert_close(torch.tensor([row["score"] for row in said]), best.values, atol=1e-5, rtol=0)
print("same")
"""


def test_the_pipeline_of_transformers_gives_the_same_labels_and_probabilities(hub, published, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed; pip install transformers")
    done = fresh(hub, tmp_path, "-c", PIPELINE)
    assert done.stdout.strip() == "same", done.stderr


def test_the_repository_holds_what_it_promises(hub, published, run_copy, tmp_path):
    files = hub.files("models/me/drawn")
    config = json.loads(files["config.json"])
    assert isinstance(config["label_names"], list) and "num_classes" not in config.get("model_args", {})
    assert {"README.md", "recipe.yaml", "folds.arrow", "result.json", "ensemble.json", "golden.png"} <= files.keys()
    assert hub.repos["models/me/drawn"].private
    assert [len(commits) for commits in hub.repos["models/me/drawn"].branches.values()] == [2, 2, 2, 2]
    members = json.loads(files["ensemble.json"])["members"]
    assert [member["sha256"] for member in members] == [
        file_hash(run_copy / f"fold-{k}/model.safetensors") for k in range(3)
    ]
    (tmp_path / "folds.arrow").write_bytes(files["folds.arrow"])
    folds = folds_rows(tmp_path)
    assert not any("/" in row[0] for row in folds) and len(folds) == 72
    assert str(run_copy) not in files["recipe.yaml"].decode() and "- train" in files["recipe.yaml"].decode()


def test_predictions_of_the_published_model_and_ensemble_are_those_of_the_run(published, run_copy, drawn, tmp_path):
    for words, local in (([], run_copy / "fold-0"), (["--members"], run_copy)):
        out = [tmp_path / f"{name}.csv" for name in ("hub", "here")]
        test = str(drawn / "test")
        assert predict.main([f"hf-hub:{published}", test, *words, "--top", "3", "--out", str(out[0])]) == 0
        assert predict.main([str(local), test, *words, "--top", "3", "--out", str(out[1])]) == 0
        assert out[0].read_bytes() == out[1].read_bytes() and len(read_csv(out[0])) == 25
    one = tmp_path / "one.csv"
    predict.main([f"hf-hub:{published}@fold-2", str(drawn / "test"), "--out", str(one)])
    predict.main([str(run_copy / "fold-2"), str(drawn / "test"), "--out", str(tmp_path / "two.csv")])
    assert one.read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_a_training_starts_from_a_repository_which_the_card_names(published, tiny, drawn, tmp_path, monkeypatch):
    recipe = ["--recipe", str(tiny), "--set", "backbone.name=hf-hub:me/drawn", "--set", "backbone.pretrained=true"]
    words = [*recipe, "--set", "folds.train=[0]", "--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0"]
    assert train.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert publish.main([str(tmp_path / "run"), "me/child", *TERMS, "--dry-run"]) == 0
    card = (tmp_path / "run/export/main/README.md").read_text()
    assert "base_model: me/drawn" in card and "fine-tuned from [me/drawn](https://huggingface.co/me/drawn)" in card
    assert "under apache-2.0" in card
    source._fetch.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert train.main([*words, "--out", str(tmp_path / "again")]) == 0
    assert file_hash(tmp_path / "again/fold-0/model.safetensors") == file_hash(
        tmp_path / "run/fold-0/model.safetensors"
    )
    source._fetch.cache_clear()
    with pytest.raises(UserError, match="hf-hub:me/other: not in the local cache"):
        train.main([*words, "--set", "backbone.name=hf-hub:me/other", "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_what_was_fetched_once_needs_no_network(published, drawn, tmp_path, monkeypatch):
    picture = str(sorted((drawn / "test").iterdir())[0])
    assert predict.main([f"hf-hub:{published}", picture, "--members"]) == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert predict.main([f"hf-hub:{published}", picture, "--members"]) == 0
    with pytest.raises(UserError, match="not in the local cache, and the Hub cannot be reached"):
        predict.main(["hf-hub:me/other", picture])


def test_publishing_again_uploads_nothing(hub, published, run_copy):
    before = {branch: list(commits) for branch, commits in hub.repos["models/me/drawn"].branches.items()}
    hub.requests.clear()
    assert publish.main([str(run_copy), published]) == 0
    assert hub.repos["models/me/drawn"].branches == before
    assert not [path for method, path in hub.requests if method == "PUT" or "/commit/" in path]


def test_files_of_an_earlier_publication_go_and_those_of_others_stay(hub, built):
    sharing.publish("me/again", built, public=False)
    repo = hub.repos["models/me/again"]
    manifest = json.loads(hub.files("models/me/again")["manifest.json"]) | {"model.onnx": {"bytes": 3, "sha256": "x"}}
    files = hub.files("models/me/again") | {
        "model.onnx": b"old", "notes.md": b"mine", "manifest.json": json.dumps(manifest).encode()
    }  # fmt: skip
    repo.add("main", "as an earlier publication left it", files)
    sharing.publish("me/again", built, public=False)
    assert "model.onnx" not in hub.files("models/me/again") and hub.files("models/me/again")["notes.md"] == b"mine"


def test_members_that_are_not_those_of_main_are_refused(hub, built, drawn):
    sharing.publish("me/mixed", built, public=False)
    repo = hub.repos["models/me/mixed"]
    other = repo.branches["fold-2"][-1][2]["model.safetensors"]
    repo.add("fold-1", "other weights", repo.branches["fold-1"][-1][2] | {"model.safetensors": other})
    with pytest.raises(UserError, match="the weights of fold-1 are not those that hf-hub:me/mixed names"):
        predict.main(["hf-hub:me/mixed", str(drawn / "test"), "--members"])


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_unknown0000", "me/refused", "the Hub does not know you: log in"),
        (STRANGER, "me/refused", "me is neither you nor an organization of yours, which are: other"),
        (WRITER, "other/refused", "other is neither you nor an organization"),
        (READER, "me/refused", "your token may only read"),
        (WRITER, "refused", "written USER/NAME"),
        (WRITER, "me/ref used", "written USER/NAME"),
    ],
)
def test_who_may_not_publish_is_told_before_anything_is_built(hub, run_copy, token, repo, message, monkeypatch):
    shutil.rmtree(run_copy / "export", ignore_errors=True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        publish.main([str(run_copy), repo, *TERMS])
    assert not (run_copy / "export").exists() and f"models/{repo}" not in hub.repos


def test_without_a_token_there_is_a_way_out(run_copy, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no token for the Hub is here: log in with `hf auth login`, or set HF_TOKEN"):
        publish.main([str(run_copy), "me/refused", *TERMS])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("POST", "/commit/", 403), "your token may not write"),
        (Fault("POST", "/commit/", 409), "is being changed by someone else; wait, and run this again"),
        (Fault("POST", "/commit/", 412), "was changed in between; look at it, and run this again"),
        (Fault("POST", "/commit/main", 0), "no connection to .* nothing is lost, run this again"),
        (Fault("PUT", "/lfs/", 400), "status 400"),
        (Fault("POST", "/preupload/", 500, 99), "the Hub failed; nothing is lost, run this again later"),
    ],
)
def test_a_failure_is_one_sentence_and_the_next_try_succeeds(hub, run_copy, built, fault, message, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.repos.pop("models/me/failing", None)
    hub.objects.clear()
    hub.faults.append(fault)
    with pytest.raises(UserError, match=f"me/failing was not published: .*{message}") as refused:
        sharing.publish("me/failing", built, public=False)
    assert refused.value.__cause__
    hub.faults.clear()
    assert sharing.publish("me/failing", built, public=False).endswith("me/failing")
    assert hub.files("models/me/failing")["model.safetensors"] == (run_copy / "fold-0/model.safetensors").read_bytes()


def test_a_commit_on_an_old_parent_is_refused(hub, published, run_copy, monkeypatch):
    """Someone else commits between our look and our commit."""
    repo, build = hub.repos["models/me/drawn"], sharing._published

    def meanwhile(*words, present):
        repo.add("fold-0", "by someone else", repo.branches["fold-0"][-1][2] | {"recipe.yaml": b"changed"})
        return build(*words, present=present)

    monkeypatch.setattr(sharing, "_published", meanwhile)
    with pytest.raises(UserError, match="was changed in between"):
        publish.main([str(run_copy), published])


def test_publishing_leaves_the_client_as_the_host_program_set_it(hub, built):
    logger = logging.getLogger("huggingface_hub")
    level, shown = logger.level, not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as of folds.arrow, a data file in a repository of a model
        sharing.publish("me/quiet", built, public=False)
    sharing.publish("me/quiet", built, public=False)  # in which nothing has changed, of which the client would warn
    assert (logger.level, not are_progress_bars_disabled()) == (level, shown)
    assert shown


def test_a_public_repository_is_only_added_to_when_that_is_said(hub, built):
    sharing.publish("me/open", built, public=True)
    assert not hub.repos["models/me/open"].private
    with pytest.raises(UserError, match="me/open exists and is public: say --public to add to it"):
        sharing.publish("me/open", built, public=False)


def test_a_license_that_the_hub_does_not_know_is_refused_with_its_words(run_copy):
    with pytest.raises(UserError, match=r"me/licensed was not published: Invalid metadata.*license.*known one: free"):
        publish.main([str(run_copy), "me/licensed", "--license", "free", "--data", "drawn"])
    find_terms(run_copy, None, None)


def test_other_repositories_cannot_be_told_from_missing_ones(published, drawn, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    with pytest.raises(UserError, match="hf-hub:me/drawn: no such repository, or a private one of others; log in"):
        predict.main(["hf-hub:me/drawn", str(drawn / "test")])
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with pytest.raises(UserError, match="the repository has no branch 'fold-9'"):
        predict.main(["hf-hub:me/drawn@fold-9", str(drawn / "test")])
    with pytest.raises(UserError, match="is written hf-hub:USER/NAME"):
        predict.main(["hf-hub:no//name", str(drawn / "test")])


def test_a_connection_that_is_cut_while_downloading_is_one_sentence(hub, published, drawn, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.faults.append(Fault("GET", r"/resolve/.*/model\.safetensors", 0, 99))
    with pytest.raises(UserError, match=r"hf-hub:me/drawn: cannot be downloaded|cannot be reached"):
        predict.main(["hf-hub:me/drawn", str(drawn / "test")])
    hub.faults.clear()
    assert predict.main(["hf-hub:me/drawn", str(drawn / "test")]) == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "names a SOCKS proxy, .*pip install socksio"),
        ("HF_TOKEN", "hf_Schlüssel", "token for the Hub .* holds characters that no token has"),
    ],
)
def test_what_the_environment_has_wrong_is_named_wherever_the_hub_is_asked(name, value, said, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    close_session()
    columns = SourceFormat()
    asked = (
        lambda: load("hf-hub:me/none"),
        lambda: check_access("me/none"),
        lambda: find_shards(["hub:me/none:train"], "image"),
        lambda: read_source(SourceSpec("hub:me/none:train", "none", columns, field="images.train")),
        lambda: reach_weights(Backbone(name="resnet10t.c3_in1k")),
    )
    for ask in asked:
        with pytest.raises(UserError, match=said):
            ask()
    close_session()


def test_a_training_publishes_at_its_end(hub, tiny, tmp_path, capsys):
    words = ["--recipe", str(tiny), "--out", str(tmp_path / "run"), "--set", "schedule.epochs=1"]
    with pytest.raises(UserError, match="--license and --data: needed for the model card, and never guessed"):
        train.main([*words, "--push", "me/pushed"])
    assert not (tmp_path / "run").exists()
    assert train.main([*words, "--set", "folds.train=[0]", "--push", "me/pushed", *TERMS]) == 0
    assert "me/pushed is published" in capsys.readouterr().out
    assert list(hub.repos["models/me/pushed"].branches) == ["main"]
