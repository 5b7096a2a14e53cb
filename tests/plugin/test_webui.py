"""LLaMA-Factory's web UI in a real headless browser: our templates and data sets are on offer.

Run: pytest tests/plugin/test_webui.py
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from llamafactory_tools import write_dataset

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="drives a browser: pip install playwright"
)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="drives a browser: apt-get install chromium"),
]

ROW = {"query": "How many pails?", "proposals": ["alpha", "beta"], "aggregation": "Six."}
START_SECONDS = 180
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture
def webui(tmp_path):
    """The address of a running `llamafactory-cli webui` that has a data set of records."""
    (tmp_path / "data").mkdir()
    write_dataset(tmp_path / "data", "drafts", [ROW])
    # What the UI itself saves: the last model, so that the page comes up with one chosen.
    (tmp_path / "llamaboard_cache").mkdir()
    saved = {"lang": "en", "hub_name": None, "last_model": "Custom"}
    saved |= {"path_dict": {"Custom": "/models/tiny"}, "cache_dir": None}
    (tmp_path / "llamaboard_cache" / "user_config.yaml").write_text(json.dumps(saved))
    with server(tmp_path) as address:
        yield address


@contextmanager
def server(folder):
    """Start the web UI in a folder, wait until it answers, and kill it in any case."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "BROWSER": "true",  # the UI opens the user's browser: this one does nothing
    }
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "webui"]
    log = folder / "webui.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not answers(address):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        with suppress(ProcessLookupError):  # it died by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address):
    try:
        with urlopen(address, timeout=10):
            return True
    except OSError:
        return False


@contextmanager
def browser_page(address):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        page = browser.new_page(viewport={"width": 1400, "height": 1800})
        page.set_default_timeout(60_000)
        page.goto(address)
        yield page
        browser.close()


def choose(page, label, choice):
    """Choose from a drop-down and return all that it offers."""
    page.get_by_label(label, exact=True).first.click()
    option = page.get_by_role("option", name=choice, exact=True)
    option.wait_for()
    offered = page.get_by_role("option").all_inner_texts()
    option.click()
    return offered


def test_templates_and_data_sets_can_be_chosen_and_reach_the_command(webui):
    with browser_page(webui) as page:
        # The page is ready once it has filled in the model that was saved.
        sync_api.expect(page.get_by_label("Model path").first).to_have_value(
            "/models/tiny", timeout=60_000
        )
        templates = set(choose(page, "Chat template", "aft_llama3"))
        assert templates >= {"llama3", "aft_llama3", "aft_llama3_moa", "aft_mistral"}
        assert "drafts" in choose(page, "Dataset", "drafts")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Preview command").first.click()
        command = page.get_by_text("llamafactory-cli train").first.inner_text()
    for words in (
        "--template aft_llama3 ",
        "--dataset drafts ",
        "--model_name_or_path /models/tiny ",
    ):
        assert words in command
