"""Conversations in a real browser: a page that reads streams as chat front ends do, and Open WebUI.

Run: pytest tests/serve/test_browser.py

Open WebUI is asked where AFT_OPEN_WEBUI names its command, from an environment of its own:
    uv venv /tmp/webui && uv pip install --python /tmp/webui/bin/python open-webui==0.12.4
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import threading
import urllib.request

import pytest
from reward_tools import free_port
from serve_tools import Watched, drafts_of, served, until

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="drives a browser: pip install playwright"
)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="drives a browser: apt-get install chromium"),
]
QUIET = "--no-sandbox --disable-gpu --disable-dev-shm-usage"

PAGE = """<!doctype html><meta charset="utf-8"><input id="ask"><pre id="chat"></pre><script>
const chat = [], ask = document.getElementById("ask"), box = document.getElementById("chat");
ask.onchange = async () => {
  chat.push({role: "user", content: ask.value});
  const answer = {role: "assistant", content: ""};
  let thoughts = "", held = "";
  const response = await fetch("URL/chat/completions", {
    method: "POST", headers: {"Content-Type": "application/json", "Authorization": "Bearer key"},
    body: JSON.stringify({model: "aft", messages: chat, stream: true})});
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part; !(part = await reader.read()).done;) {
    const lines = (held + part.value).split("\\n");
    held = lines.pop();
    for (const line of lines.filter(l => l.startsWith("data: {"))) {
      const delta = JSON.parse(line.slice(6)).choices[0].delta;
      thoughts += delta.reasoning_content || "";
      answer.content += delta.content || "";
      box.textContent = "[" + thoughts + "] " + answer.content;
    }
  }
  chat.push(answer);
  box.dataset.turns = chat.length;
};
</script>"""


def test_a_conversation_in_a_browser_shows_drafts_and_then_answers(monkeypatch, tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=site.serve_forever).start()
    origin = f"http://127.0.0.1:{site.server_port}"
    monkeypatch.setenv("AFT_API_KEY", "key")
    try:
        with (
            served(Watched(drafts_of, delay=0.5), allow_origin=[origin]) as server,
            sync_api.sync_playwright() as playwright,
        ):
            (tmp_path / "index.html").write_text(PAGE.replace("URL", server.url))
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
            page = browser.new_page()
            page.goto(origin)
            for turn, question in enumerate(("How many pails?", "And cows?"), start=1):
                page.fill("#ask", question)
                page.press("#ask", "Enter")
                page.wait_for_selector(f"#chat[data-turns='{2 * turn}']", timeout=30000)
                shown = page.text_content("#chat")
                thoughts, _, answer = shown.rpartition("] ")
                assert [f"**Draft {i + 1}, layer 1**" in thoughts for i in range(3)] == [True] * 3
                assert answer.startswith("aggregation 0 at 0.7")
            said = [message["content"] for message in server.engine.requests[-1].prompt]
            assert said[-1] == "And cows?"
            assert "How many pails?" in said
            assert any(text.startswith("aggregation 0") for text in said)
            browser.close()
    finally:
        site.shutdown()
        site.server_close()


def thinking(request):
    return [f"<think>Hm.</think>{text}" for text in drafts_of(request)]


@pytest.mark.skipif("AFT_OPEN_WEBUI" not in os.environ, reason="asks by Open WebUI: AFT_OPEN_WEBUI")
def test_a_conversation_in_open_webui(monkeypatch, tmp_path):
    monkeypatch.setenv("AFT_API_KEY", "key")
    port = free_port()
    with (
        served(Watched(thinking, delay=0.5)) as server,
        sync_api.sync_playwright() as playwright,
        (tmp_path / "log").open("wb") as log,
    ):
        settings = {
            "DATA_DIR": str(tmp_path),
            "WEBUI_AUTH": "False",
            "WEBUI_SECRET_KEY": "x" * 32,
            "OFFLINE_MODE": "True",
            "HF_HUB_OFFLINE": "1",
            "ENABLE_OLLAMA_API": "False",
            "OPENAI_API_BASE_URL": server.url,
            "OPENAI_API_KEY": "key",
            "TASK_MODEL_EXTERNAL": "plain",
        }
        line = [os.environ["AFT_OPEN_WEBUI"], "serve", "--host", "127.0.0.1", "--port", str(port)]
        webui = subprocess.Popen(line, env=os.environ | settings, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: is_up(url), 120)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
            page = browser.new_page()
            page.goto(f"{url}/?models=aft", timeout=60000)
            page.wait_for_selector("#chat-input", timeout=90000)
            page.keyboard.press("Escape")  # what is new
            for turn, question in enumerate(("How many pails?", "And cows?"), start=1):
                page.click("#chat-input")
                page.keyboard.type(question)
                page.keyboard.press("Enter")
                page.get_by_text(re.compile("^aggregation 0 at")).nth(turn - 1).wait_for(
                    timeout=60000
                )
            page.get_by_text("Thought for").last.click()  # folded until then
            page.get_by_text("Thought of the answer").wait_for(timeout=10000)
            shown = page.inner_text("body")
            assert [f"Draft {i}, layer 1" in shown for i in (1, 2, 3)] == [True] * 3
            browser.close()
        finally:
            webui.terminate()
            webui.wait()
        drafted = [r.prompt[-1]["content"] for r in server.engine.requests if r.n == 3]
        assert drafted == ["How many pails?", "And cows?"]  # titles and tags are asked of `plain`


def is_up(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
