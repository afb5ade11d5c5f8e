import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from amae_plugin.benchmark.candidates import CANDIDATES, TEXTBOOK, TWO_PASS_SSAST
from amae_plugin.benchmark.step import StepSpec, count_flops
from amae_plugin.cli.main import main
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.recipes import model_settings

TASK = """
defaults:
  - _self_
  - model: tiny
task: {_name: amae_pretraining, data: "???", target_length: 64, num_mel_bins: 32}
optimization: {lr: ["${not.known:1}"]}
"""
MODEL = """
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
compile: false
"""


@pytest.fixture(scope="module")
def config_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "model").mkdir()
    (folder / "tiny_recipe.yaml").write_text(TASK)
    (folder / "model" / "tiny.yaml").write_text(MODEL)
    (folder / "broken.yaml").write_text("task: {")
    (folder / "other.yaml").write_text(TASK.replace("model: tiny", "model: other"))
    (folder / "model" / "other.yaml").write_text("_name: wav2vec2\n")
    return folder


def block_flops(tokens, dim, seen, mlp_ratio=4):
    """Forward pass of a transformer block whose tokens each attend to ``seen`` others."""
    return 2 * tokens * (4 + 2 * mlp_ratio) * dim**2 + 2 * (2 * tokens * seen * dim)


def spec(settings, batch):
    return StepSpec(settings, "fp32", batch, threads=2, steps=1, device="cpu")


def test_a_step_is_measured_in_each_precision_beside_the_reference(config_dir, tmp_path, capsys):
    path = tmp_path / "figures.json"
    recipe = ["--recipe", "tiny_recipe", "--config-dir", str(config_dir)]
    assert main(["benchmark", *recipe, "--batch", "3", "--steps", "2", "--reference", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert (figures["batch"], figures["threads"], figures["steps"]) == (3, 2, 2)
    assert figures["flops"] == count_flops(spec(figures["settings"], 3))
    assert list(figures["precisions"]) == ["fp32", "bf16"]
    for row in (*figures["precisions"].values(), figures["reference"]):
        assert row["clips_per_second"] == pytest.approx(3 / row["seconds"])
        assert row["peak_bytes"] > 50e6  # PyTorch alone
        assert row["warm_up_seconds"] > 0
        assert row["matrix_flops_per_second"] > 1e8
    for row in figures["precisions"].values():
        assert row["time_ratio"] == pytest.approx(row["seconds"] / figures["reference"]["seconds"])
        assert row["memory_ratio"] == pytest.approx(row["peak_bytes"] / figures["reference"]["peak_bytes"])
        assert row["flops_share"] == pytest.approx(figures["flops"] / row["seconds"] / row["matrix_flops_per_second"])
        assert 0 < row["mask_share"] < 1
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in table[2:]] == ["| textbook fp32", "| fp32", "| bf16"]
    assert table[3][1] == f"{figures['precisions']['fp32']['seconds']:.4g}"


def test_flops_of_a_global_decoder_are_those_computed_by_hand(config_dir):
    settings = model_settings("tiny_recipe", config_dir)
    visible, tokens, values = 8, 32, 64
    with_input_gradient = (
        block_flops(1 + visible, 24, 1 + visible)
        + 2 * (1 + visible) * 24 * 16
        + block_flops(1 + tokens, 16, 1 + tokens)
        + 2 * tokens * 16 * values
    )
    embedding = 2 * visible * values * 24  # the spectrogram needs no gradient
    assert count_flops(spec(settings, 5)) == 5 * (3 * with_input_gradient + 2 * embedding)


def test_flops_of_windows_count_their_biases_once_a_batch(config_dir):
    settings = model_settings("tiny_recipe", config_dir, ["model.decoder=shifted"])
    visible, tokens, values, window = 8, 32, 64, 16
    with_input_gradient = (
        block_flops(1 + visible, 24, 1 + visible)
        + 2 * (1 + visible) * 24 * 16
        + block_flops(tokens, 16, window)
        + 2 * tokens * 16 * values
    )
    biases = 3 * 2 * window**2 * 384 * 2 + 2 * 2 * window**2 * 2 * 384
    once = count_flops(spec(settings, 1))
    assert once == 3 * with_input_gradient + 2 * (2 * visible * values * 24) + biases
    assert count_flops(spec(settings, 5)) == 5 * (once - biases) + biases


def test_flops_of_mae_ast_count_its_attention_and_every_block():
    settings = {"_name": "amae_mae_ast", "input_length": 64, "num_mel_bins": 32, "patch_size": [8, 8]}
    settings.update(embed_dim=24, depth=4, num_heads=3, layerdrop=0.9, attention_dropout=0.5)
    settings.update(decoder_embed_dim=24, decoder_depth=1, decoder_num_heads=3)
    visible, tokens, values = 8, 32, 64
    with_input_gradient = 4 * block_flops(visible, 24, visible) + block_flops(tokens, 24, tokens)
    heads = 2 * (2 * tokens * 24 * values)
    scores = 2 * tokens * tokens * values  # of InfoNCE: the targets need no gradient
    embedding = 2 * visible * values * 24
    assert count_flops(spec(settings, 2)) == 2 * (3 * (with_input_gradient + heads) + 2 * (scores + embedding))


def test_flops_of_the_textbook_model(config_dir):
    settings = {**model_settings("tiny_recipe", config_dir), "_name": TEXTBOOK}
    visible, tokens, values = 8, 32, 64
    with_input_gradient = (
        block_flops(1 + visible, 24, 1 + visible)
        + 2 * visible * 24 * 16
        + block_flops(tokens, 16, tokens)
        + 2 * tokens * 16 * values
    )
    assert count_flops(spec(settings, 2)) == 2 * (3 * with_input_gradient + 2 * (2 * visible * values * 24))


def test_flops_of_ssast_whose_encoder_sees_mask_tokens(config_dir):
    settings = {**model_settings("tiny_recipe", config_dir), "_name": "amae_ssast", "masking": "cluster"}
    tokens, values = 32, 64
    with_input_gradient = block_flops(2 + tokens, 24, 2 + tokens) + 2 * (2 * tokens * 24 * (24 + values))
    once = 2 * tokens * values * 24 + 2 * tokens * tokens * values
    assert count_flops(spec(settings, 3)) == 3 * (3 * with_input_gradient + 2 * once)


def test_flops_of_eat_count_its_clones_its_teacher_and_the_groups_of_its_convolutions():
    settings = {"_name": "amae_eat", "input_length": 64, "num_mel_bins": 32, "patch_size": [8, 8], "embed_dim": 24}
    settings.update(depth=2, num_heads=3, clones=5, mask_ratio=0.75, decoder_depth=3, decoder_groups=4)
    visible, tokens, values = 8, 32, 64
    embedding = 2 * tokens * values * 24
    student = 2 * block_flops(1 + visible, 24, 1 + visible)
    decoder = 3 * (2 * tokens * 24 * (24 // 4) * 3 * 3) + 2 * tokens * 24 * 24
    teacher = embedding + 2 * block_flops(1 + tokens, 24, 1 + tokens)
    assert count_flops(spec(settings, 2)) == 2 * (2 * embedding + 3 * 5 * (student + decoder) + teacher)


def test_flops_of_cav_mae_count_its_pictures_and_the_shared_block_three_times():
    settings = {"_name": "amae_cav_mae", "input_length": 64, "num_mel_bins": 32, "patch_size": [8, 8], "embed_dim": 24}
    settings.update(depth=3, num_heads=3, image_size=32, image_patch_size=8, decoder_embed_dim=16, decoder_depth=2)
    settings.update(decoder_num_heads=2)
    sound, image, tokens, values, pixels = 8, 4, 32 + 16, 64, 192
    alone = 3 * (block_flops(sound, 24, sound) + block_flops(image, 24, image))
    both = block_flops(sound + image, 24, sound + image) + 2 * (sound + image) * 24 * 16
    decoder = 2 * block_flops(tokens, 16, tokens) + 2 * 16 * (32 * values + 16 * pixels)
    embedding = 2 * 24 * (sound * values + image * pixels)
    cosines = 2 * 2 * 2 * 24
    assert count_flops(spec(settings, 2)) == 2 * (3 * (alone + both + decoder) + 2 * embedding) + 3 * cosines


def test_settings_are_the_recipes_with_sizes_of_its_task_and_changes(config_dir):
    settings = model_settings("tiny_recipe", config_dir, ["model.depth=3", "task.target_length=128"])
    assert (settings["input_length"], settings["num_mel_bins"], settings["depth"]) == (128, 32, 3)
    assert settings["patch_size"] == [8, 8]
    assert model_settings(str(config_dir / "tiny_recipe.yaml"), config_dir / "elsewhere")["depth"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "other_recipe"], "the nearest are tiny_recipe, other, broken"),
        (["--recipe", "broken"], "broken.yaml: "),
        (["--recipe", "other"], "model._name=wav2vec2 is not a model that can be measured; there are: amae_audio_mae"),
        (
            ["--recipe", "tiny_recipe", "--set", "model.dept=3"],
            "model.dept: there is no such setting; the nearest is model.depth",
        ),
        (["--recipe", "tiny_recipe", "--device", "toaster"], "must be auto, cpu, cuda or cuda:N"),
        (["--recipe", "tiny_recipe", "--device", "cuda:99"], "PyTorch finds no such GPU"),
    ],
)
def test_what_cannot_be_measured_is_a_message(config_dir, capsys, arguments, message):
    assert main(["benchmark", "--config-dir", str(config_dir), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    lines = ["."]
    for index in range(9):
        soundfile.write(folder / f"{index}.flac", rng.normal(0, 0.1, 8_000 + 1_000 * index), 16_000)
        lines.append(f"{index}.flac\t{8_000 + 1_000 * index}")
    (folder / "broken.flac").write_bytes(b"fLaC" + bytes(100))
    lines.append("broken.flac\t8000")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    return folder / "train.tsv"


def test_a_step_is_profiled_and_fed_by_the_loader(config_dir, manifest, tmp_path, capsys):
    figures, trace = tmp_path / "figures.json", tmp_path / "trace.json"
    recipe = ["--recipe", "tiny_recipe", "--config-dir", str(config_dir), "--precision", "fp32", "--steps", "1"]
    files = ["--feed", str(manifest), "--workers", "1", "--profile", str(trace), "--json", str(figures)]
    assert main(["benchmark", *recipe, "--batch", "3", *files]) == 0
    assert any(event.get("name") == "aten::mm" for event in json.loads(trace.read_text())["traceEvents"])
    row = json.loads(figures.read_text())["precisions"]["fp32"]
    assert min(row["fed_clips_per_second"], row["cpu_seconds"]) > 0
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| "))
    assert header.startswith("|  | seconds a step | of the processor | clips/s | clips/s with the loader |")
    assert main(["benchmark", "--compare", "--profile", str(trace)]) == 2
    assert main(["benchmark", "--profile", str(tmp_path / "none" / "x.json")]) == 2
    assert "make the folder first" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_data_path_is_measured_stage_by_stage(manifest, tmp_path, capsys, workers):
    path, threads = tmp_path / "figures.json", torch.get_num_threads()
    arguments = ["--data", str(manifest), "--workers", workers, "--target-length", "64", "--batch", "4"]
    assert main(["benchmark", *arguments, "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert (figures["clips"], figures["workers"], figures["target_length"]) == (10, int(workers), 64)
    stages = figures["clips_per_second_per_worker"]
    assert stages["skipped"] == 1
    inverse = sum(1 / stages[stage] for stage in ("decode", "features", "collate"))
    assert stages["together"] == pytest.approx(1 / inverse)
    assert figures["loader_clips_per_second"] > 0
    assert torch.get_num_threads() == threads
    output, _ = capsys.readouterr()
    assert "10 clips, 1 unreadable" in output
    assert f"data loader with {workers} workers" in output


def test_the_data_path_of_pairs_has_a_stage_of_its_own(manifest, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(manifest.parent / "picture.png")
    root, *lines = manifest.read_text().splitlines()
    pictures = ["none.png"] + ["picture.png"] * (len(lines) - 1)
    rows = [f"{line}\t{picture}" for line, picture in zip(lines, pictures)]
    (manifest.parent / "pairs.tsv").write_text("\n".join([root, *rows]))
    arguments = ["--data", str(manifest.parent / "pairs.tsv"), "--workers", "0", "--target-length", "64"]
    assert main(["benchmark", *arguments, "--json", str(tmp_path / "figures.json")]) == 0
    stages = json.loads((tmp_path / "figures.json").read_text())["clips_per_second_per_worker"]
    inverse = sum(1 / stages[stage] for stage in ("decode", "pictures", "features", "collate"))
    assert stages["together"] == pytest.approx(1 / inverse)
    assert stages["skipped"] == 2
    assert "pictures " in capsys.readouterr().out


def test_a_manifest_of_nothing_readable_is_a_message(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text(".\nmissing.wav\t100\n")
    assert main(["benchmark", "--data", str(tmp_path / "train.tsv"), "--workers", "0"]) == 2
    assert "none of the 1 clips drawn can be decoded" in capsys.readouterr().err
    (tmp_path / "train.tsv").write_text(".\n")
    assert main(["benchmark", "--data", str(tmp_path / "train.tsv")]) == 2
    assert "holds no clips" in capsys.readouterr().err


def test_all_systems_are_compared(config_dir, tmp_path, capsys):
    for name, extra in {
        "amae_audio_mae": MODEL,
        "amae_mae_ast": MODEL.replace("decoder: global\n", "") + "masking: random\n",
        "amae_ssast": "_name: amae_ssast\npatch_size: [8, 8]\nembed_dim: 24\ndepth: 1\nnum_heads: 3\nmasking: random\n",
        "amae_m2d": MODEL.replace("decoder: global\n", ""),
        "amae_eat": "_name: amae_eat\npatch_size: [8, 8]\nembed_dim: 24\ndepth: 1\nnum_heads: 3\nclones: 2\n",
        "amae_cav_mae": MODEL.replace("decoder: global\n", "image_size: 16\nimage_patch_size: 8\n"),
    }.items():
        (config_dir / "model" / f"{name}.yaml").write_text(extra.replace("_name: amae_audio_mae", f"_name: {name}"))
    path = tmp_path / "figures.json"
    recipe = ["--recipe", "tiny_recipe", "--config-dir", str(config_dir), "--precision", "fp32"]
    assert main(["benchmark", "--compare", *recipe, "--batch", "2", "--steps", "1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert list(figures["systems"]) == [*SYSTEMS, TWO_PASS_SSAST]
    seconds = {name: system["fp32"]["seconds"] for name, system in figures["systems"].items()}
    for name in ("amae_ssast", TWO_PASS_SSAST):
        ratio = figures["mae_ast_against"]["fp32"][name]
        assert ratio["times_faster"] == pytest.approx(seconds[name] / seconds["amae_mae_ast"])
        assert 0.2 < ratio["memory_share"] < 5
    reference = figures["reference"]["seconds"]
    assert figures["systems"]["amae_ssast"]["fp32"]["time_ratio"] == pytest.approx(seconds["amae_ssast"] / reference)
    lengths = {name: settings["input_length"] for name, settings in figures["settings"].items()}
    assert lengths.pop("amae_m2d") == 608 and set(lengths.values()) == {64}
    for name, system in figures["systems"].items():
        row = system["fp32"]
        assert 0 < row["mask_share"] < 1
        assert row["gflop_per_clip"] == pytest.approx(count_flops(spec(figures["settings"][name], 2)) / 2e9)
        assert row["flops_share"] == pytest.approx(row["flops"] / row["seconds"] / row["matrix_flops_per_second"])
    output = capsys.readouterr().out
    assert "| textbook fp32 |" in output
    assert "| two-pass SSAST fp32 |" in output
    assert f"fp32: amae_mae_ast takes 1/{seconds['amae_ssast'] / seconds['amae_mae_ast']:.2f} of the time" in output


def test_two_passes_are_the_objectives_of_one(config_dir):
    settings = {"_name": "amae_ssast", "input_length": 64, "num_mel_bins": 32, "patch_size": [8, 8], "embed_dim": 24}
    settings.update(depth=1, num_heads=3, masking="random")
    one, two = CANDIDATES["amae_ssast"], CANDIDATES[TWO_PASS_SSAST]
    torch.manual_seed(0)
    model = one.build(settings)
    source, _ = one.inputs(settings, 2)
    # With the same masks in both passes, which seeds a whole batch apart do not give, the losses are equal.
    mask = model.masking(lambda count: torch.linspace(0, 1, count).expand(2, -1), (8, 4))
    model.masking = lambda noise, grid: mask
    seed = torch.arange(2)
    torch.testing.assert_close(two.loss(model, source, seed), one.loss(model, source, seed))
    # Twice the encoder; each objective is still differentiated once.
    assert count_flops(spec({**settings, "_name": TWO_PASS_SSAST}, 2)) > 1.7 * count_flops(spec(settings, 2))
