"""The page of ``amae reconstruct`` in a real browser, at the width of a desk and of a phone, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from amae_plugin.cli.main import main

DESK, PHONE = 1280, 360
SECONDS = {"a <b>&\"'$x$ é.wav": 0.5, "long.wav": 9.0, "short.wav": 1.25}


class Written(NamedTuple):
    folder: Path

    @property
    def index(self) -> Path:
        return self.folder / "index.html"


@pytest.fixture(scope="module")
def written(write_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("page")
    (root / "clips").mkdir()
    for name, seconds in SECONDS.items():
        time = np.arange(round(seconds * 16_000)) / 16_000
        clip = 0.3 * np.sin(2 * np.pi * (300 + 500 * time / seconds) * time) + np.random.default_rng(0).normal(
            0, 0.01, len(time)
        )
        soundfile.write(root / "clips" / name, clip, 16_000)
    checkpoint = write_checkpoint(root / "model.pt", None)
    arguments = ["reconstruct", str(checkpoint), str(root / "clips"), "--out", str(root / "out"), "--workers", "0"]
    assert main(arguments) == 0
    return Written(root / "out")


def test_the_page_loads_without_complaints_and_asks_for_nothing_else(
    written: Written, open_page: Callable[..., Any]
) -> None:
    page = open_page(written.index, DESK)
    assert page.complaints() == []
    assert page.requests() == [written.index.as_uri()]
    assert page.evaluate("document.title") == "Hidden and filled in"


def test_a_complaint_would_be_seen(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('no'); undefinedName.x()</script><img src='http://192.0.2.1/a.png'>")
    page = open_page(path, DESK)
    assert len(page.complaints()) >= 3
    assert "http://192.0.2.1/a.png" in page.requests()


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_pictures_are_shown(width: int, written: Written, open_page: Callable[..., Any]) -> None:
    page = open_page(written.index, width)
    images = page.evaluate(
        "[...document.images].map(i => ({alt: i.alt, frames: i.naturalWidth, bands: i.naturalHeight,"
        " width: i.clientWidth, height: i.clientHeight}))"
    )
    frames = [1 + (round(seconds * 16_000) - 400) // 160 for seconds in SECONDS.values() for _ in range(3)]
    assert [image["frames"] for image in images] == frames
    assert {image["bands"] for image in images} == {64}
    assert all(image["alt"] and image["width"] > 200 and image["height"] > 100 for image in images)
    assert images[0]["alt"].startswith("Spectrogram of a <b>&\"'$x$ é.wav: 0 to 0.48 seconds, 20 to 8,000 Hz")


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_page_does_not_scroll_sideways(width: int, written: Written, open_page: Callable[..., Any]) -> None:
    page = open_page(written.index, width)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate("innerWidth") == width
    # Nothing sticks out but what scrolls by itself.
    outside = page.evaluate(
        "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.long .panels, details:not([open])')"
        " && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML)"
    )
    assert outside == []
    scrolls = page.evaluate(
        "[...document.querySelectorAll('.panels')].map(e => e.scrollWidth > e.clientWidth && e.tabIndex == 0)"
    )
    assert scrolls == [False, width == PHONE, False]


def test_panels_are_side_by_side_on_a_desk_and_below_each_other_on_a_phone(
    written: Written, open_page: Callable[..., Any]
) -> None:
    tops = "[...document.querySelectorAll('article:last-of-type, article')].slice(0, 3).map(a =>"
    tops += " new Set([...a.querySelectorAll('figure')].map(f => f.getBoundingClientRect().top)).size)"
    assert open_page(written.index, DESK).evaluate(tops) == [1, 3, 1]
    assert open_page(written.index, PHONE).evaluate(tops) == [3, 3, 3]


def test_players_last_as_long_as_the_clips(written: Written, open_page: Callable[..., Any]) -> None:
    page = open_page(written.index, DESK)
    durations = page.evaluate(
        "Promise.all([...document.querySelectorAll('audio')].map(a => a.readyState ? a.duration :"
        " new Promise(done => a.addEventListener('loadedmetadata', () => done(a.duration)))))"
    )
    expected = [seconds for seconds in SECONDS.values() for _ in range(3)]
    assert durations == pytest.approx(expected, abs=1e-3)
    labels = page.evaluate("[...document.querySelectorAll('audio')].map(a => a.getAttribute('aria-label'))")
    assert labels[-3:] == ["Original: short.wav", "Masked: short.wav", "Reconstructed: short.wav"]


def test_a_click_into_a_picture_plays_from_there_and_the_line_follows(
    written: Written, open_page: Callable[..., Any]
) -> None:
    page = open_page(written.index, DESK)
    clip = "article:nth-of-type(2) figure"
    state = f"""(async figure => {{
      const player = figure.querySelector("audio"), cursor = figure.querySelector(".cursor");
      if (player.seeking) await new Promise(done => player.addEventListener("seeked", done, {{once: true}}));
      await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
      return {{now: player.currentTime, left: parseFloat(cursor.style.left), hidden: cursor.hidden,
              paused: player.paused}};
    }})(document.querySelectorAll("{clip}")[%d])"""
    assert page.evaluate(state % 0)["hidden"]
    page.click(f"{clip}:nth-of-type(1) .inside", 0.2)
    first = page.evaluate(state % 0)
    assert not first["paused"] and not first["hidden"]
    page.click(f"{clip}:nth-of-type(2) .inside", 0.5)
    second = page.evaluate(state % 1)
    seconds = 8.98  # of the picture
    assert second["now"] == pytest.approx(0.5 * seconds, abs=1) and second["now"] >= 0.49 * seconds
    assert second["left"] == pytest.approx(100 * second["now"] / seconds, abs=3)
    assert page.evaluate(state % 0)["paused"] and not second["paused"]
    assert page.complaints() == []


def test_light_and_dark(written: Written, open_page: Callable[..., Any]) -> None:
    colours = "[document.body, document.querySelector('.key .model')].map(e => getComputedStyle(e)).map("
    colours += "s => [s.color, s.backgroundColor])"
    light, dark = (open_page(written.index, DESK, dark=dark).evaluate(colours) for dark in (False, True))
    assert light[0] == ["rgb(27, 33, 38)", "rgb(245, 246, 247)"]
    assert dark[0] == ["rgb(231, 235, 238)", "rgb(20, 23, 26)"]
    assert light[1][0] != dark[1][0]


def test_errors_are_drawn_and_in_a_table(written: Written, open_page: Callable[..., Any]) -> None:
    page = open_page(written.index, DESK)
    assert page.evaluate("document.querySelectorAll('.errors').length") == len(SECONDS) + 1  # and all together
    points = page.evaluate("[...document.querySelectorAll('.errors polyline.model')].map(p => p.points.length)")
    assert len(points) == len(SECONDS) + 1 and set(points) <= set(range(1, 65))
    rows = page.evaluate(
        "[...document.querySelector('.errors table').rows].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert rows[0] == ["Hz", "model", "straight lines"] and len(rows) == 9
    assert rows[1][0] == "34 to 297"
    assert all(cell.endswith(" dB") for row in rows[1:] for cell in row[1:])


def test_names_are_text_and_not_html(written: Written, open_page: Callable[..., Any]) -> None:
    page = open_page(written.index, DESK)
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings == [*SECONDS, "All 3 clips"]
    assert page.evaluate("document.querySelector('h2 b')") is None
