"""What tests of the data share."""

from pathlib import Path

import pytest
from datasets import config


@pytest.fixture
def hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub library's caches, empty and apart."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", folder / "datasets")
    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", folder / "datasets/downloads")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    return folder
