from __future__ import annotations

import math
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from amae_plugin.data.manifest import write_manifest
from amae_plugin.errors import UserError
from amae_plugin.recipes import clips, override, plugin_dir, scaled_lr, update_freq, updates_of


@pytest.mark.parametrize(("number", "epochs", "expected"), [(1, 1, 1), (8, 1, 1), (9, 1, 2), (100, 32, 13 * 32)])
def test_updates_count_the_last_smaller_batch_of_each_epoch(
    tmp_path: Path, number: int, epochs: int, expected: int
) -> None:
    write_manifest(tmp_path / "train.tsv", tmp_path, [(f"{index}.wav", 1) for index in range(number)])
    formula = f"${{amae.updates_of:${{amae.clips:{tmp_path},train}},8,{epochs}}}"
    assert OmegaConf.create({"max_update": formula}).max_update == expected


def test_a_manifest_without_clips_makes_no_recipe(tmp_path: Path) -> None:
    write_manifest(tmp_path / "train.tsv", tmp_path, [])
    with pytest.raises(UserError, match=r"train\.tsv: holds no clips"):
        clips(str(tmp_path), "train")


def test_updates_of_clips_that_are_drawn() -> None:
    assert updates_of(200_000, 512, 100) == 391 * 100


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 32))
def test_accumulation_makes_up_the_global_batch(batch_size: int, devices: int, steps: int) -> None:
    assert update_freq(batch_size * devices * steps, batch_size, devices) == steps


def test_global_batch_that_cannot_be_reached() -> None:
    message = (
        r"clips_per_update=512 is not a multiple of dataset\.batch_size=96 times 8 devices; dataset\.batch_size=64 "
    )
    with pytest.raises(UserError, match=message):
        update_freq(512, 96, 8)
    with pytest.raises(UserError, match="times 3 devices; choose one that divides it"):
        update_freq(512, 96, 3)


def test_learning_rate_grows_with_the_global_batch() -> None:
    assert math.isclose(scaled_lr(2e-4, 512), 4e-4)


def test_values_are_computed_when_a_recipe_is_read() -> None:
    recipe = OmegaConf.create({"clips": 512, "lr": ["${amae.scaled_lr:1e-3,${clips}}"], "dir": "${amae.plugin_dir:}"})
    assert recipe.lr[0] == 2e-3
    assert recipe.dir == plugin_dir()


TEXTS = [
    "a=b",
    "a,b",
    "x(1)",
    'it\'s "q"',
    "é Ü",
    "a\\",
    "a\\'b",
    "$x",
    "{a}",
    "[a]",
    " a ",
    "",
    "null",
    "True",
    "nan",
    "1e5",
]
TEXTS += ["1_000", "007", "a:b", "~x", "#x", "a%b", "/plain/path-1.2_3", "word", "glob(*)", "a\nb"]


@given(st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]))))
def test_override_gives_a_setting_exactly_this_text(text: str) -> None:
    if "${" in text:
        with pytest.raises(UserError, match="choose a name without it"):
            override("task.data", text)
        return
    parser = OverridesParser.create()
    written = parser.parse_override(override("task.data", text))
    assert OmegaConf.create({"data": written.value()}).data == text
    # Of a sweep, it is one value, and the launcher's jobs get the same.
    assert not written.is_sweep_override()
    (((again,),),) = BasicSweeper.split_arguments([written], None)
    assert parser.parse_override(again).value() == text


def test_override_of_plain_text_is_easy_to_read() -> None:
    assert override("task.data", Path("/data/speech-1.0/clips_2")) == "task.data=/data/speech-1.0/clips_2"
