"""IFEval in tests: NLTK's data, which its checkers take, and answers made up for its prompts."""

import contextlib
import json
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ENGLISH = "tokenizers/punkt_tab/english"
_DATA = tempfile.TemporaryDirectory()  # a copy, as NLTK refuses the hard links that uv makes


def _has_punkt():
    """Whether NLTK finds punkt_tab: its own, or what a package of requirements/model.txt carries."""
    try:
        import nltk.data

        with contextlib.suppress(PackageNotFoundError):
            package = distribution("llama-index-core")
            carried = package.locate_file(f"llama_index/core/_static/nltk_cache/{ENGLISH}")
            shutil.copytree(str(carried), Path(_DATA.name) / ENGLISH)
            nltk.data.path.append(_DATA.name)
        nltk.data.find("tokenizers/punkt_tab")
    except (ImportError, LookupError):
        return False
    return True


HAS_PUNKT = _has_punkt()
needs_punkt = pytest.mark.skipif(
    not HAS_PUNKT, reason="IFEval needs NLTK's punkt_tab (NLTK_DATA), which is not here"
)


def ifeval_answer(row):
    """A made-up answer to a prompt of IFEval, of a kind that some checkers take and others do not."""
    told = [str(value) for own in row["kwargs"] for value in own.values() if value is not None]
    said = {name: value for own in row["kwargs"] for name, value in own.items() if value}
    plain = f"{said.get('first_word', 'Here')} is a paragraph of plain words."
    prompt, kind = row["prompt"], row["key"] % 7
    texts = [
        f"{prompt}\n\nSo be it: {' '.join(told)}",
        prompt.upper() + " THIS IS AN ANSWER, IN CAPITAL LETTERS.",
        prompt.lower().replace(",", "") + " this is an answer in small letters.",
        f"<<A title>>\n\n* {prompt}\n* [place] *one* *two* **three**\n\nP.S. {' '.join(told)}",
        f"```json\n{json.dumps({'answer': prompt})}\n```",
        "\n\n".join([plain] * (said.get("num_paragraphs") or 2)),
        f'"Das ist eine Antwort auf Deutsch. Sie ist kurz. {" ".join(told)}"',
    ]
    return texts[kind]
