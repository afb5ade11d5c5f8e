"""One HTML file to look at and listen to what a search finds: pictures by sound, and sounds by picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import soundfile
from PIL import Image
from torch import Tensor

from amae_plugin.visual.page import data_url, template


class Medium(NamedTuple):
    """A sound or a picture on the page.

    Attributes:
        name: what it is called.
        address: its content, see :func:`sound` and :func:`picture`.
    """

    name: str
    address: str


class Hit(NamedTuple):
    """What a search found: a sound or a picture, its similarity, and whether it belongs to the query."""

    medium: Medium
    similarity: float
    right: bool


class Search(NamedTuple):
    """A query, the place of its first right candidate, the number of all candidates, and the best ones."""

    query: Medium
    rank: int
    candidates: int
    hits: Sequence[Hit]


def sound(name: str, waveform: Tensor, sample_rate: int) -> Medium:
    """Make a player's sound of a waveform (samples,)."""
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), sample_rate, format="MP3", subtype="MPEG_LAYER_III")
    return Medium(name, data_url("audio/mpeg", file.getvalue()))


def picture(name: str, image: Tensor) -> Medium:
    """Make a picture of values (3, S, S) from 0 to 1."""
    file = io.BytesIO()
    pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, format="JPEG", quality=85)
    return Medium(name, data_url("image/jpeg", file.getvalue()))


def render(
    pictures_by_sound: Sequence[Search],
    sounds_by_picture: Sequence[Search],
    facts: Mapping[str, str],
    table: Sequence[Sequence[str]],
) -> str:
    """Make the page. Its content security policy forbids it to use a network.

    Args:
        pictures_by_sound: searches for pictures.
        sounds_by_picture: searches for sounds.
        facts: names and values that describe the search.
        table: measures of all queries, a header first.
    """
    searches = {"sound": pictures_by_sound, "picture": sounds_by_picture}
    return template("hits.html.jinja").render(searches=searches, facts=facts, table=table)
