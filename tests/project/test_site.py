"""The pages as a site: it builds without a broken link, holds every page, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages == {path.stem for path in site.glob("*.html")} - {"404"}
    shown = (site / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{page}.html"' in shown for page in pages - {"index"})


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*?src="([^"]*)"', text)
        loaded += re.findall(r'<link\b[^>]*?rel="stylesheet"[^>]*?href="([^"]*)"', text)
        loaded += re.findall(r'<link\b[^>]*?href="([^"]*)"[^>]*?rel="stylesheet"', text)
        assert loaded
        assert [link for link in loaded if re.match(r"(https?:)?//", link)] == []
