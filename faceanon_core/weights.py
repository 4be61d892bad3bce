"""Where the embedded demo model and its gallery live."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
GALLERY = ASSETS / "gallery"
