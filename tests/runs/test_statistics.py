"""Statistics that are measured once, and again only if a manifest changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from amae_plugin.cli.main import main
from amae_plugin.data.log_mel import FrontEnd, LogMel, SlaneyLogMel
from amae_plugin.data.manifest import write_manifest
from amae_plugin.data.statistics import read_or_measure
from amae_plugin.errors import UserError
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.recipe_files import recipe_folder
from amae_plugin.runs.statistics import read_front_end


@pytest.fixture
def manifests(tmp_path: Path) -> dict[str, Path]:
    """Manifests of a loud and of a quiet corpus, in folders of the same name."""
    paths = {}
    rng = np.random.default_rng(0)
    for name, level in (("loud", 0.3), ("quiet", 0.0003)):
        folder = tmp_path / name / "manifests"
        folder.mkdir(parents=True)
        for index in range(3):
            soundfile.write(folder / f"{index}.wav", level * rng.standard_normal(8000), 16_000)
        paths[name] = folder / "train.tsv"
        write_manifest(paths[name], folder, [(f"{index}.wav", 8000) for index in range(3)])
    return paths


@pytest.mark.parametrize("system", ["amae_audio_mae", "amae_m2d"])
def test_they_are_those_of_amae_stats(system: str, manifests: dict[str, Path], tmp_path: Path) -> None:
    front_end = SYSTEMS[system].default_input.front_end
    measured = read_or_measure(manifests["loud"], front_end, 32, tmp_path / "cache.json")
    command = ["stats", str(manifests["loud"]), "--target-length", "32", "--workers", "0"]
    command += ["--front-end", front_end.name]
    assert main([*command, "--json", str(tmp_path / "stats.json")]) == 0
    shown = json.loads((tmp_path / "stats.json").read_text())
    assert measured == pytest.approx((shown["mean"], shown["std"]))


def test_each_manifest_input_and_length_has_its_own_and_is_measured_once(
    manifests: dict[str, Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.json"
    inputs = [(LogMel(), 16), (LogMel(), 32), (SlaneyLogMel(), 32)]
    keys = [(path, *chosen) for path in manifests.values() for chosen in inputs]
    measured = [read_or_measure(*key, cache) for key in keys]
    assert len(set(measured)) == len(keys)
    assert measured[0][0] > measured[3][0] + 5
    for path in manifests.values():
        modified = path.stat()
        path.write_text("changed, but at the same time")  # is not read again
        os.utime(path, ns=(modified.st_atime_ns, modified.st_mtime_ns))
    assert [read_or_measure(*key, cache) for key in keys] == measured


def test_a_damaged_cache_is_named(manifests: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text('{"half')
    with pytest.raises(UserError, match=r"cache\.json: does not hold the statistics of manifests; delete it"):
        read_or_measure(manifests["loud"], LogMel(), 32, tmp_path / "cache.json")


def test_a_manifest_that_changed_is_measured_again(manifests: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    loud = read_or_measure(manifests["loud"], LogMel(), 32, cache)
    manifests["loud"].write_bytes(manifests["quiet"].read_bytes().replace(b"loud", b"quiet"))
    assert read_or_measure(manifests["loud"], LogMel(), 32, cache)[0] < loud[0] - 5


def test_measuring_leaves_the_random_numbers_alone(manifests: dict[str, Path], tmp_path: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1]
    read_or_measure(manifests["loud"], LogMel(), 32, tmp_path / "cache.json")
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("pretrain_audio_mae_tiny", [], (LogMel(), 128)),
        (
            "pretrain_audio_mae_tiny",
            ["task.num_mel_bins=64", "+task.window_type=povey"],
            (LogMel(16_000, 64, "povey"), 128),
        ),
        ("pretrain_mae_ast_tiny", ["task.target_length=32"], (LogMel(window_type="povey"), 32)),
        ("pretrain_m2d_tiny", ["task.mean=auto", "task.std=auto"], (SlaneyLogMel(), 128)),
        ("finetune_audio_mae_tiny", ["+task.front_end=slaney"], (SlaneyLogMel(), 128)),
    ],
)
def test_a_recipe_has_the_front_end_that_its_training_would_have(
    recipe: str, overrides: list[str], expected: tuple[FrontEnd, int]
) -> None:
    assert read_front_end(recipe, recipe_folder(), overrides) == expected


def test_fine_tuning_has_the_front_end_of_the_encoder_that_it_begins_with(
    write_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    encoder = {"_name": "amae_m2d", "input_length": 64, "num_mel_bins": 80, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    pretrained = write_checkpoint(tmp_path / "m2d.pt", None, encoder=encoder)
    overrides = [f"model.pretrained={pretrained}"]
    assert read_front_end("finetune_audio_mae_tiny", recipe_folder(), overrides) == (SlaneyLogMel(), 128)


def test_a_recipe_whose_front_end_there_is_not_is_named() -> None:
    with pytest.raises(UserError, match="pretrain_audio_mae_tiny: task: window_type is 'round'"):
        read_front_end("pretrain_audio_mae_tiny", recipe_folder(), ["+task.window_type=round"])
