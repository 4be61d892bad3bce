"""The locale files against the nodes: nothing missing, nothing left over, and what must be typed stays as it is."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from locale_tools import LOCALES, english, own_sockets

TRANSLATIONS = ("ko", "zh", "ja")
ENGLISH = english()


def read(language: str, name: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def texts(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """("node.inputs.name.tooltip", text) of every text."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from texts(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def test_the_english_file_says_what_the_nodes_say() -> None:
    assert read("en") == ENGLISH, "run: python tests/locale_tools.py"


def test_no_language_is_forgotten_here() -> None:
    assert {folder.name for folder in LOCALES.iterdir()} == {"en", *TRANSLATIONS}


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_covers_exactly_the_nodes_inputs_and_outputs_that_exist(language: str) -> None:
    assert dict(texts(read(language))).keys() == dict(texts(ENGLISH)).keys()


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_titles_and_tooltips_are_translated(language: str) -> None:
    left = [path for path, text in texts(read(language)) if not path.endswith(".name") and text.isascii()]
    assert left == []


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_numbers_and_words_to_type_are_the_same_in_a_translation(language: str) -> None:
    fixed = re.compile(r"\d+(?:\.\d+)?|\w+=\w+|\b\w+_\w+\b|\b(?:automatic|add|subtract|intersect|patches)\b", re.ASCII)
    translated = dict(texts(read(language)))
    for path, text in texts(ENGLISH):
        if not path.endswith(".name"):
            assert set(fixed.findall(text)) == set(fixed.findall(translated[path])), path


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_names_nodes_by_their_translated_titles(language: str) -> None:
    translated = read(language)
    found = dict(texts(translated))
    assert len({node["display_name"] for node in translated.values()}) == len(translated)
    for path, text in texts(ENGLISH):
        for node_id, node in ENGLISH.items():
            if node["display_name"] in text:
                assert translated[node_id]["display_name"] in found[path], path


@pytest.mark.parametrize("language", ["en", *TRANSLATIONS])
def test_no_text_holds_what_the_editor_takes_for_message_syntax(language: str) -> None:
    """vue-i18n reads braces as placeholders, @ as a link, and a bar as the border between plural forms."""
    assert [path for path, text in texts(read(language)) if re.search(r"[{}@|]", text)] == []


@pytest.mark.parametrize("language", ["en", *TRANSLATIONS])
def test_the_category_and_our_sockets_have_names(language: str) -> None:
    names = read(language, "main")
    assert names["nodeCategories"] == {"FaceAnon": "FaceAnon"}
    assert set(names["dataTypes"]) == own_sockets() and all(names["dataTypes"].values())
