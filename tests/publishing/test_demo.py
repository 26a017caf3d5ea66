"""The demo page in a real browser: a photo is uploaded, and the page says what predict.py says."""

import csv
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import predict
from creature.publishing import demo
from creature.reporting.tables import escape_markdown
from helpers import ROOT


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="gradio is not installed; pip install -e '.[demo]'")
    port = free_port()
    command = [sys.executable, "-m", "creature", "demo", str(run), "--members", "--device", "cpu", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        lines = []
        for line in server.stdout:
            lines.append(line)
            if f"open http://127.0.0.1:{port}" in "".join(lines):
                break
        else:
            pytest.fail("".join(lines))
        yield f"http://127.0.0.1:{port}/"
        server.kill()


def upload(browser, page: str, picture: Path, wanted: str) -> str:
    """The page's text once it holds what is wanted."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page)
    box = WebDriverWait(browser, 60).until(lambda b: b.find_elements(By.CSS_SELECTOR, "input[type=file]"))[0]
    box.send_keys(str(picture))
    WebDriverWait(browser, 60).until(lambda b: wanted in b.find_element(By.TAG_NAME, "body").text)
    assert not [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and page in entry["message"]
    ]
    return browser.find_element(By.TAG_NAME, "body").text


def test_a_dropped_photo_is_answered_as_by_predict(browser, page, run, drawn, tmp_path):
    picture = sorted((drawn / "test").iterdir())[0]
    predict.main([str(run), str(picture), "--members", "--top", "5", "--out", str(tmp_path / "p.csv")])
    with (tmp_path / "p.csv").open() as file:
        (row,) = csv.DictReader(file)
    best = [row["label"], *(row[f"label_{k}"] for k in range(2, 6))]
    lines = upload(browser, page, picture, "members say").splitlines()
    assert [line for line in lines if line in best][1:6] == best  # the first is the headline
    assert f"{float(row['probability']):.0%}" in lines
    assert any(line.endswith(f"of 3 members say {row['label']}.") for line in lines)
    assert all(f"fold-{k}" in lines for k in range(3))


def test_a_photo_that_cannot_be_decoded_is_said(browser, page, drawn, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(sorted((drawn / "test").iterdir())[0].read_bytes()[:700])
    assert "corrupt image" in upload(browser, page, broken, "cannot be read")


def test_names_are_text_on_the_page():
    assert escape_markdown("<b>*owl*</b>") == "\\<b\\>\\*owl\\*\\</b\\>"
    assert demo._listed([str(k) for k in range(20)]).startswith("20 classes, such as 0, 1")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_a_proxy_is_not_asked_for_the_page_on_this_computer(run, proxy):
    pytest.importorskip("gradio", reason="gradio is not installed; pip install -e '.[demo]'")
    environment = os.environ | {"HTTP_PROXY": proxy, "ALL_PROXY": proxy}
    command = [
        sys.executable,
        "-m",
        "creature",
        "demo",
        str(run),
        "--members",
        "--device",
        "cpu",
        "--port",
        str(free_port()),
    ]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        opened = any("open http://127.0.0.1" in line for line in server.stdout)
        server.kill()
    assert opened
