"""Every promise of the privacy page names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "PRIVACY.md").read_text(encoding="utf-8")
PROMISES = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]


@pytest.mark.parametrize("line", PROMISES, ids=lambda line: line[2:40])
def test_a_promise_names_tests_that_exist(line: str) -> None:
    tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", line)
    assert tests
    for file, name in tests:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_there_are_promises() -> None:
    assert len(PROMISES) >= 10
