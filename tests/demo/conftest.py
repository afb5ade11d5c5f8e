"""The browser of the tests of pages."""

from __future__ import annotations

from pathlib import Path

from loading import load

_pages = load("pages_in_a_browser", Path(__file__).parents[1] / "visual" / "conftest.py")
browser, open_page = _pages.browser, _pages.open_page
