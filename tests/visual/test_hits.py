"""The page of ``amae retrieve`` in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amae_plugin.visual.hits import Hit, Search, picture, render, sound

DESK, PHONE = 1280, 360


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sounds = [sound(f"{hz} <b>.wav", torch.sin(torch.arange(16_000) * hz / 2500), 16_000) for hz in (200, 400, 800)]
    pictures = [picture(f"{level}.png", torch.full((3, 40, 40), level / 2)) for level in range(3)]
    by_sound = [Search(sounds[0], 2, 3, [Hit(shown, 0.5, shown is pictures[1]) for shown in pictures])]
    by_picture = [Search(pictures[0], 1_234, 2_000, [Hit(shown, 0.5, False) for shown in sounds])]
    table = [("recall", "at 1"), ("sound to picture", "0.5000")]
    path = tmp_path_factory.mktemp("hits") / "index.html"
    path.write_text(render(by_sound, by_picture, {"split": "<i>"}, table), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_hits_are_shown_and_played_without_complaints(width: int, page: Path, open_page: Callable[..., Any]) -> None:
    opened = open_page(page, width)
    assert opened.complaints() == []
    assert opened.requests() == [page.as_uri()]
    assert opened.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    sizes = "[...document.images].map(i => [i.naturalWidth, i.clientWidth > 60, i.clientWidth == i.clientHeight])"
    assert opened.evaluate(sizes) == [[40, True, True]] * 4
    durations = opened.evaluate(
        "Promise.all([...document.querySelectorAll('audio')].map(a => a.readyState ? a.duration :"
        " new Promise(done => a.addEventListener('loadedmetadata', () => done(a.duration)))))"
    )
    assert durations == pytest.approx([1.0] * 4, abs=0.1)
    right = opened.evaluate("[...document.querySelectorAll('.right img')].map(i => i.alt)")
    assert right == ["1.png"]
    text = opened.evaluate("document.body.innerText")
    assert "200 <b>.wav" in text and "its sound is number 1,234 of 2,000" in text


def test_one_sound_plays_at_a_time(page: Path, open_page: Callable[..., Any]) -> None:
    opened = open_page(page, DESK)
    # Without a user's gesture no sound plays, so the event stands for it.
    script = """(([first, ...others]) => {
      const paused = [];
      for (const player of [first, ...others]) player.pause = () => paused.push(player);
      first.dispatchEvent(new Event("play"));
      return paused.length == others.length && !paused.includes(first);
    })([...document.querySelectorAll("audio")])"""
    assert opened.evaluate(script)
