"""Images and a trained run that several tests share: drawn creatures at 32 px and a tiny backbone from scratch."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may need the network
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()  # the user's own is neither filled nor asked
os.environ["COLUMNS"] = "200"  # tables that no narrow terminal wraps

import pytest
from hypothesis import HealthCheck, settings

import train
from creature.data.fork_server import fork_server
from creature.samples import write_drawings
from helpers.runs import TINY

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
# The same examples in every run, few of them, and no file that remembers failures.
settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a tmp_path may hold the files of all examples
)
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def workers_server() -> Iterator[None]:
    """One server of worker processes for all tests, which each would start their own."""
    with fork_server("creature.data.loader", "datasets"):
        yield


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/<species>/ (72 images), test/ (24) and test_labels.csv."""
    folder = tmp_path_factory.mktemp("drawn")
    write_drawings(folder, train=72, test=24, size=32)
    return folder


@pytest.fixture(scope="session")
def tiny(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two epochs on the drawn images, three folds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    images = {**TINY["images"], "train": [str(drawn / "train")]}  # type: ignore[dict-item]
    path.write_text(json.dumps({**TINY, "images": images}))
    return path


@pytest.fixture(scope="session")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's run, trained; tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main(["--recipe", str(tiny), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A browser without a window that uses no network of its own, and keeps what pages write to its console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    for flag in (*flags, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=500,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
