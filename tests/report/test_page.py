"""The page in a real headless browser, from disk. Run: pytest tests/report/test_page.py"""

import pytest
from report_tools import HOSTILE, needs_browser, opened, report, run

pytestmark = [pytest.mark.slow, needs_browser]
MEGABYTE = "A line of a draft that does not end.\n" * 28_000


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=[{}, {"color_scheme": "dark", "viewport": {"width": 390, "height": 800}}])
def context(request):
    return request.param


def test_hostile_drafts_are_shown_as_text(monkeypatch, capsys, context):
    rows = [{"id": HOSTILE[0], "query": f"{HOSTILE[0]} {HOSTILE[1]}", "reference": HOSTILE[2]}]
    texts = [*HOSTILE, MEGABYTE]
    thought = f"<think>{HOSTILE[0]}</think>{HOSTILE[1]}"

    def script(request):
        return texts if request.n == 5 else [thought] * request.n

    run(monkeypatch, capsys, rows, "--width", "5", "--layers", "1", script=script)
    report(capsys, "out.jsonl")
    with opened("#0", **context) as page:
        assert page.text_content(".asked").startswith(f"user{HOSTILE[0]}")
        shown = []
        for slot in range(5):
            page.click(f"[data-place='0/0/{slot}']")
            shown.append(page.text_content(".pane .draft > .prose"))
        assert shown[0] == HOSTILE[0]
        assert shown[1] == (
            "a⟨U+2028⟩b⟨U+2029⟩c ␀␁␛[31mred␡ ⟨U+202E⟩right to left⟨U+202C⟩ ⟨U+200B⟩⟨U+E0041⟩"
        )
        assert shown[2] == HOSTILE[2]
        assert shown[3].startswith("half a pair: ")
        assert len(shown[4]) < 25_000
        page.click(".pane .more")
        assert page.text_content(".pane .draft > .prose") == MEGABYTE
        page.keyboard.press("p")
        page.click("[data-place='0/1/0']")  # whose prompt holds all of them
        assert HOSTILE[0] in page.text_content(".prompt")
        page.keyboard.press("c")
        assert page.locator(".sides .side").count() == 2
        page.keyboard.press("o")
        page.wait_for_selector(".overview")


def test_reading_by_keys(monkeypatch, capsys):
    rows = [{"id": f"q{i}", "query": f"What is {i}?", "reference": f"{i}"} for i in range(30)]
    said = [f"Both sides are counted once. It is {n}." for n in (1, 2)]
    run(monkeypatch, capsys, rows, "--width", "2", "--layers", "1", script=lambda r: said[: r.n])
    report(capsys, "out.jsonl")
    with opened() as page:
        page.locator(".row").first.wait_for()
        key = "dispatchEvent(new KeyboardEvent('keydown', {key: 'j'}))"
        page.evaluate(f"{key}; {key}")  # faster than the page goes from one to the next
        page.locator(".place", has_text="q1 ").wait_for()
        assert page.text_content(".verdict") == "✓ right"
        assert page.text_content("mark").strip() == "Both sides are counted once."
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.locator(".cell.open").get_attribute("data-place") == "0/0/1"
        assert page.locator(".cell.reader").get_attribute("data-place") == "0/1/0"
        page.keyboard.press("ArrowDown")
        assert page.locator(".cell.read").count() == 2
        page.keyboard.press("ArrowUp")
        page.keyboard.press("c")
        assert page.locator("del").all_text_contents() == ["1."]
        assert page.locator("ins").all_text_contents() == ["2."]
        page.keyboard.press("Escape")
        assert page.locator(".pane").count() == 0
        page.keyboard.press("/")
        page.keyboard.type("is 17?")
        page.keyboard.press("Enter")  # before the list has been searched
        page.locator(".place", has_text="q17 ").wait_for()


def test_the_list_is_narrowed_sorted_and_searched_in_drafts(monkeypatch, capsys):
    rows = [{"id": f"q{i}", "query": f"What is {i}?", "reference": "1"} for i in range(30)]

    def script(request):
        seven = request.prompt[-1]["content"] == "What is 7?"
        return ["A heron. It is 1." if seven else "It is 2."] * request.n

    run(monkeypatch, capsys, rows, "--width", "2", "--layers", "1", script=script)
    report(capsys, "out.jsonl")
    with opened() as page:
        first = page.locator(".row .words").first
        page.select_option("nav select", "most drafts right")
        assert first.text_content() == "What is 7?"
        page.click(".list .chip[data-flag=wrong]")
        page.locator(".told", has_text="29 of 30").wait_for()
        page.click(".list .chip[data-flag=wrong]")
        page.fill("input[type=search]", "HERON")
        page.locator(".told", has_text="0 of 30").wait_for()
        page.check("input[type=checkbox]")
        page.locator(".told", has_text="1 of 30").wait_for()
        assert first.text_content() == "What is 7?"


def test_only_what_is_in_sight_is_in_the_pages_tree(monkeypatch, capsys):
    rows = [{"query": f"What is {i}?"} for i in range(600)]
    run(monkeypatch, capsys, rows, "--layers", "0")
    report(capsys, "out.jsonl")
    with opened() as page:
        assert page.locator(".row").count() < 40
        page.evaluate("document.querySelector('.scroll').scrollTop = 1e9")
        page.locator(".row", has_text="What is 599?").wait_for()
        assert page.locator(".row").count() < 40
