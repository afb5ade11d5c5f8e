from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amae_plugin.cli.main import main
from amae_plugin.cli.plan import batch_that_fits, ring_seconds

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "slurm" / "planning.md"
RECIPE = """
task: {_name: amae_pretraining, data: "???", target_length: 64, num_mel_bins: 32, clips_per_update: 24}
dataset: {batch_size: 8}
optimization: {max_epoch: 3, max_update: "${amae.updates_of:${task.clips_per_epoch},24,3}"}
model:
  _name: amae_audio_mae
  patch_size: [8, 8]
  embed_dim: 24
  depth: 1
  num_heads: 3
  decoder: global
  decoder_embed_dim: 16
  decoder_depth: 1
  decoder_num_heads: 2
  mask_ratio: 0.75
  bf16: true
"""
FRAMES = """
task: {_name: amae_pretraining, target_length: 256, num_mel_bins: 32, batch_length: shortest, length_multiple: 16,
  frames_per_update: 960}
dataset: {max_tokens: 960}
optimization: {max_update: 1000}
model: {_name: amae_mae_ast, patch_size: [8, 8], embed_dim: 24, depth: 1, num_heads: 3, decoder_embed_dim: 24,
  decoder_depth: 1, decoder_num_heads: 3, bf16: false}
"""


@pytest.fixture(scope="module")
def config_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "frames.yaml").write_text(FRAMES)
    (folder / "endless.yaml").write_text(re.sub("max_epoch.*}", "max_epoch: 0}", RECIPE))
    (folder / "epochs.yaml").write_text(re.sub(", max_update.*}", "}", RECIPE))
    (folder / "classifier.yaml").write_text(RECIPE.replace("amae_audio_mae", "amae_classifier"))
    return folder


def plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, str]:
    """The lines of the last estimate by name, spaces aside."""
    assert main(["plan", *map(str, arguments)]) == 0
    found = re.findall(r"^  (\S.*?)  +(\S.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    return {name: re.sub("  +", " | ", rest) for name, rest in found}


def test_the_estimate_of_a_recipe(config_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = plan(
        capsys,
        *("--recipe", "small", "--config-dir", config_dir, "--nodes", 2, "--gpus-per-node", 2, "--gpu", "a100-sxm"),
        *("--clips", 1000, "--train-rate", 500, "--decode-rate", 50, "--clip-bytes", 3000, "--network", 80),
    )
    # By hand, as tests/cli/test_benchmark.py does: 24 and 16 wide, 9 visible and 33 tokens with CLS, 64 values.
    forward = 2 * 9 * 12 * 24**2 + 4 * 9 * 9 * 24 + 2 * 9 * 24 * 16 + 2 * 33 * 12 * 16**2 + 4 * 33 * 33 * 16
    flops = 3 * (forward + 2 * 32 * 16 * 64) + 2 * (2 * 8 * 64 * 24)
    assert lines["step"].startswith(f"{flops / 1e6:.4g} MFLOP/clip | ")
    # 3 x 42, the last of which is not full; the updates that the recipe computes from its manifest are the same.
    assert lines["updates"] == "126 | 3 epochs of 1,000 / 24, rounded up (optimization.max_epoch)"
    assert (
        lines["share of a GPU"]
        == "6 clips | 24 / 4; needs dataset.batch_size=6, since the recipe's 8 does not divide that"
    )
    assert lines["speed of all"].startswith("2,000.0 clips/s")
    assert lines["computation"].startswith("12 ms")
    parameters = 1e3 * float(lines["parameters"].split()[0])
    assert float(lines["gradients"].split(" kB")[0]) == pytest.approx(4 * parameters / 1e3, rel=1e-3)
    assert float(lines["state"].split(" kB")[0]) == pytest.approx(16 * parameters / 1e3, rel=1e-3)
    nvlink, network = (1.5 * 4 * parameters / rate for rate in (300e9, 10e9))
    assert float(lines["NVLink"].split()[0]) == pytest.approx(1e3 * nvlink, rel=1e-2)
    assert float(lines["network"].split()[0]) == pytest.approx(1e3 * network, rel=1e-2)
    # A ring is as fast as its slowest link.
    assert float(lines["exchange"].split("%")[0]) == pytest.approx(100 * network / 0.012, abs=0.06)
    assert lines["decoding"].startswith("10 cores/GPU")
    assert lines["reading"].startswith("6 MB/s")
    assert "precision" not in lines


def test_an_assumed_utilisation_says_so_and_a_given_one_too(
    config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ("--recipe", config_dir / "small.yaml")
    assumed = plan(capsys, *recipe)["speed of a GPU"]
    assert "20.0% (assumed; Audio-MAE reached 18.5% on an H200) of the maker's 989 TFLOP/s" in assumed
    given = plan(capsys, *recipe, "--utilisation", 0.25, "--gpu", "b200")["speed of a GPU"]
    assert "25.0% (--utilisation) of the maker's 2,250 TFLOP/s" in given


def test_batches_of_frames_are_counted_in_clips_of_whole_patches(
    config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ("--recipe", "frames", "--config-dir", config_dir, "--gpus-per-node", 1, "--clips", 8000)
    lines = plan(capsys, *recipe, "--clip-seconds", 1)
    # A second is 98 frames, 96 in whole patches: ten clips an update.
    assert lines["update"] == "10 clips | task.frames_per_update=960 / 96 frames a clip"
    assert lines["updates"] == "1,000 | 1.25 epochs of 8,000 / 10, rounded up (optimization.max_update)"
    assert lines["precision"].startswith("bfloat16")
    assert "exchange" not in lines
    assert plan(capsys, *recipe, "--clip-seconds", 60)["update"].endswith(" / 256 frames a clip")


def test_the_exchange_that_a_layout_needs(config_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ("--recipe", "small", "--config-dir", config_dir, "--clips", 240, "--train-rate", 0.1, "--network", 1e-6)
    alone = plan(capsys, *recipe, "--gpus-per-node", 1)
    assert not {"NVLink", "network", "exchange"} & alone.keys()
    assert alone["training"].startswith("2 h | 30 updates, ")  # 30 x 24 clips of ten seconds
    node = plan(capsys, *recipe, "--gpus-per-node", 4)
    assert "network" not in node
    assert node["training"].startswith("30 min | 30 updates, with all or none of the exchange hidden")
    assert node["reading"].startswith("76.8 kB/s | all nodes: 0.4 clips/s x 192 kB")
    nodes = plan(capsys, *recipe, "--gpus-per-node", 1, "--nodes", 2)
    assert "NVLink" not in nodes
    # 1 kbit/s: the exchange takes longer than the computation that could hide it.
    exchange = 4e3 * float(nodes["parameters"].split()[0]) / 125
    low, high = (float(bound) for bound in re.findall(r"([0-9.]+) h", nodes["training"]))
    assert low == pytest.approx(30 * exchange / 3600, rel=1e-2)
    assert high == pytest.approx(30 * (exchange + 120) / 3600, rel=1e-2)


@given(st.integers(1, 64), st.floats(1, 1e12), st.floats(1, 1e12))
def test_a_ring_takes_no_longer_than_twice_the_data(devices: int, data: float, rate: float) -> None:
    seconds = ring_seconds(data, devices, rate)
    assert 0 <= seconds < 2 * data / rate
    assert math.isclose(seconds * devices, 2 * (devices - 1) * data / rate)


@given(st.integers(1, 2048), st.integers(1, 256))
def test_a_batch_divides_the_share_and_is_the_largest_that_fits(share: int, limit: int) -> None:
    batch = batch_that_fits(share, limit)
    assert share % batch == 0
    assert batch <= limit
    assert all(share % larger for larger in range(batch + 1, min(share, limit) + 1))


def test_a_recipe_that_names_epochs_alone(config_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ("--recipe", "epochs", "--config-dir", config_dir, "--clips", 240)
    lines = plan(capsys, *recipe, "--nodes", 3, "--gpus-per-node", 1, "--train-rate", 1, "--network", 1e6)
    assert lines["updates"].startswith("30 | 3 epochs")
    assert lines["training"].startswith("4 min | ")  # 30 updates of 8 clips on each GPU, a second a clip
    # fairseq stops at whichever comes first.
    assert plan(capsys, *recipe, "--set", "+optimization.max_update=20")["updates"].startswith("20 | ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "none"], "the nearest are endless, "),
        (["--recipe", "classifier"], "model._name=amae_classifier is not a model that can be measured"),
        (["--recipe", "endless"], "neither optimization.max_epoch nor max_update is above 0"),
        (["--recipe", "small", "--gpus-per-node", "5"], "task.clips_per_update=24 is not a multiple of 5 GPUs"),
        (["--recipe", "small", "--set", "dataset.batch_size=null"], "dataset.batch_size must be a whole number"),
        (["--recipe", "frames", "--set", "~task.length_multiple"], "task.length_multiple must be a whole number"),
        (["--recipe", "small", "--set", "model.mask_ratio=2"], "small: model: mask_ratio must be at least 0"),
        (["--recipe", "small", "--utilisation", "1.5"], "--utilisation 1.5: a share of the GPU's peak is at most 1"),
    ],
)
def test_what_cannot_be_planned_is_a_message(
    config_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["plan", "--config-dir", str(config_dir), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_page_shows_what_its_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    [(command, shown)] = re.findall(r"```bash\namae (plan .*)\n```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert main(command.split()) == 0
    assert capsys.readouterr().out == shown
