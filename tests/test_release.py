"""What must agree before a version is published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_changelog_begins_with_the_version_that_would_be_published() -> None:
    """Publishing is started by a new version in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="reads TOML since Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == project["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", versions[0]), "the registry takes X.Y.Z only"


def test_comfyui_manager_installs_what_pip_does() -> None:
    """It reads requirements.txt alone."""
    tomllib = pytest.importorskip("tomllib", reason="reads TOML since Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert required == project["project"]["dependencies"]
