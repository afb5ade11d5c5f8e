"""fairseq's own recipes for speech, with a checkpoint of this plugin in the place of wav2vec 2.0's, and its decoder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fairseq
import numpy as np
import pytest
import soundfile
import yaml
from conftest import Run, environment, run_in_turn, train

from amae_plugin.data.manifest import write_manifest

PLUGIN = Path(__file__).parents[2] / "amae_plugin"
# The settings of examples/wav2vec/config/finetuning/base_100h.yaml; what is smaller here is marked.
RECIPE = {
    "common": {"fp16": False, "log_format": "json", "log_interval": 1},  # on a CPU
    "checkpoint": {"no_epoch_checkpoints": True, "best_checkpoint_metric": "wer"},
    "task": {"_name": "audio_finetuning", "data": "???", "normalize": False, "labels": "ltr"},
    "dataset": {"num_workers": 0, "max_tokens": 40000, "valid_subset": "valid"},  # shorter batches
    "distributed_training": {"ddp_backend": "legacy_ddp", "distributed_world_size": 1},
    "criterion": {"_name": "ctc", "zero_infinity": True},
    "optimization": {"max_update": 4, "lr": [0.001], "sentence_avg": True},  # fewer and larger steps
    "optimizer": {"_name": "adam", "adam_betas": "(0.9,0.98)", "adam_eps": 1e-8},
    "lr_scheduler": {"_name": "tri_stage", "phase_ratio": [0.1, 0.4, 0.5], "final_lr_scale": 0.05},
    "model": {
        "_name": "wav2vec_ctc",
        "w2v_path": "???",
        "apply_mask": True,
        "mask_prob": 0.65,
        "mask_channel_prob": 0.5,
        "mask_channel_length": 64,
        "layerdrop": 0.1,
        "activation_dropout": 0.1,
        "feature_grad_mult": 0.0,
        "freeze_finetune_updates": 2,  # 0 there
    },
}
SEQ2SEQ = {
    "criterion": {"_name": "label_smoothed_cross_entropy", "label_smoothing": 0.1},
    "task": {"autoregressive": True},
    "model": {"_name": "wav2vec_seq2seq", "decoder_layers": 1, "decoder_embed_dim": 512, "decoder_ffn_embed_dim": 16},
    "checkpoint": {"best_checkpoint_metric": "loss"},
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of tones of three pitches, one for each letter."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    for split, clips in (("train", 12), ("valid", 8)):
        letters = [rng.choice(list("abc"), rng.integers(2, 5)) for _ in range(clips)]
        rows = []
        for index, word in enumerate(letters):
            hz = np.repeat([{"a": 300, "b": 900, "c": 2700}[letter] for letter in word], 4000)
            samples = 0.3 * np.sin(2 * np.pi * np.cumsum(hz) / 16_000) + 0.01 * rng.standard_normal(len(hz))
            soundfile.write(folder / f"clip-{split}{index}.wav", samples, 16_000)
            rows.append((f"clip-{split}{index}.wav", len(samples)))
        write_manifest(folder / f"{split}.tsv", str(folder), rows)
        (folder / f"{split}.ltr").write_text("".join(" ".join(word) + " |\n" for word in letters))
    (folder / "dict.ltr.txt").write_text("".join(f"{letter} 1\n" for letter in "abc|"))
    return folder


@pytest.fixture(scope="module")
def pretrained(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a run of pretraining writes it, of frame tokens."""
    folder = tmp_path_factory.mktemp("pretrained")
    settings = ["model.patch_size=[2,128]", "model.masking=span", "task.target_length=64", "optimization.max_update=5"]
    run = train(folder, f"task.data={speech}", *settings, recipe="pretrain_mae_ast_tiny")
    assert run.returncode == 0, run.output
    return folder / "checkpoints" / "checkpoint_last.pt"


def fine_tune(pretrained: Path, speech: Path, folder: Path) -> list[Run]:
    """Train by CTC, train a decoder, and try what is fine-tuned already, one after the other in one process."""
    commands = {}
    for name, changes, path in (
        ("ctc", {}, pretrained),
        ("seq2seq", SEQ2SEQ, pretrained),
        ("again", {}, folder / "ctc" / "checkpoints" / "checkpoint_best.pt"),
    ):
        recipe = {section: {**values, **changes.get(section, {})} for section, values in RECIPE.items()}
        if "criterion" in changes:
            recipe["criterion"] = changes["criterion"]
        (folder / "config").mkdir(exist_ok=True)
        content = "# @package _group_\n" + yaml.safe_dump(recipe)
        (folder / "config" / f"{name}.yaml").write_text(content)
        settings = [f"task.data={speech}", f"model.w2v_path={path}", f"common.user_dir={PLUGIN}"]
        settings += [f"hydra.run.dir={folder / name}", f"checkpoint.save_dir={folder / name / 'checkpoints'}"]
        configured = ["--config-dir", str(folder / "config"), "--config-name", name]
        commands[folder / name] = ["fairseq-hydra-train", *configured, *settings]
    return run_in_turn(commands)


def decode(checkpoint: Path, speech: Path, folder: Path) -> list[str]:
    """Decode by fairseq's infer.py, with the changes that the page names."""
    examples = folder / "examples"
    examples.symlink_to(Path(fairseq.__file__).parent / "examples")
    new = folder / "infer"
    shutil.copytree(examples / "speech_recognition" / "new" / "conf", new / "conf")
    script = (examples / "speech_recognition" / "new" / "infer.py").read_text()
    for pattern, replacement in (
        (r": (\w+Config) = \1\(\)", r": \1 = field(default_factory=\1)"),
        (r"(__dataclass_fields__\[k\])\.default\b", r"\1.default_factory()"),
        (r"config_path=config_path", "config_path=str(config_path)"),
    ):
        script, count = re.subn(pattern, replacement, script)
        assert count
    (new / "infer.py").write_text(script)
    settings = [f"common_eval.path={checkpoint}", "common_eval.post_process=letter", "decoding.type=viterbi"]
    settings += [f"+task={{_name: audio_finetuning, data: {speech}, labels: ltr}}", "dataset.gen_subset=valid"]
    settings += [f"hydra.run.dir={folder}", f"decoding.results_path={folder}", "common.cpu=true"]
    done = subprocess.run(
        [sys.executable, str(new / "infer.py"), f"common.user_dir={PLUGIN}", *settings],
        env={**environment(), "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "hypo.units").read_text().splitlines()


def test_fairseqs_recipes_train_decode_and_load_without_the_pretraining_checkpoint(
    pretrained: Path, speech: Path, tmp_path: Path
) -> None:
    ctc, seq2seq, again = fine_tune(pretrained, speech, tmp_path)
    for run, metric in ((ctc, "valid_wer"), (seq2seq, "valid_loss")):
        assert run.returncode == 0, run.output
        assert [np.isfinite(float(loss)) for loss in run.losses().values()] == [True] * 4
        assert float(run.logged("valid")[-1][metric]) > 0
    assert "time steps: 50 a second, 48 values each; a masked span is 0.2 s" in ctc.output
    assert again.returncode == 2, again.output
    assert "model.w2v_path is the checkpoint of a speech recogniser, which is fine-tuned already" in again.output
    assert "Traceback" not in again.output
    pretrained.unlink()
    assert len(decode(tmp_path / "ctc" / "checkpoints" / "checkpoint_best.pt", speech, tmp_path)) == 8
