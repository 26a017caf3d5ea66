"""The examples, run as their first lines say: a web service over real HTTP, and a notebook."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import creature
from helpers import ROOT

EXAMPLES = ROOT / "examples"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def service(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed; pip install -e '.[test]'")
    port, log = free_port(), tmp_path_factory.mktemp("service") / "log.txt"
    environment = {**os.environ, "CREATURE_MODEL": str(run / "fold-0"), "CREATURE_DEVICE": "cpu"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", str(port), "service:app"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)
    try:
        while "Uvicorn running" not in log.read_text():
            assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def post(url: str, photo: bytes) -> list[dict[str, object]]:
    head = '--part\r\nContent-Disposition: form-data; name="photo"; filename="photo.png"\r\n\r\n'
    body = head.encode() + photo + b"\r\n--part--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=part"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
        return json.load(answer)


def test_the_service_answers_many_at_once_as_the_model_does(service: str, run: Path, drawn: Path):
    photos = [path.read_bytes() for path in sorted((drawn / "test").iterdir())]
    expected = [prediction.top(3) for prediction in creature.load(run / "fold-0", device="cpu").predict(photos)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda photo: post(f"{service}/predict", photo), photos))
    for answer, top in zip(answers, expected, strict=True):
        assert [(row["label"], pytest.approx(row["probability"], abs=1e-5)) for row in answer] == top


def test_the_service_refuses_what_is_no_image_with_the_reason(service: str):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{service}/predict", b"no image")
    assert refused.value.code == 422 and "not an image in a known format" in refused.value.read().decode()


def test_the_service_refuses_a_number_of_labels_that_is_none(service: str):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{service}/predict?top=0", b"")
    assert refused.value.code == 422


def test_the_notebook_runs_from_the_top(tmp_path: Path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; pip install -e '.[test]'")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed; pip install -e '.[test]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed; pip install -e '.[test]'")
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "kept without output"
    os.environ["PYTHONPATH"] = str(ROOT)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert "(n = 240)" in printed and printed.count("fold-") >= 3
