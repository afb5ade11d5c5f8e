"""Recognition: from transcripts in fairseq's files to text, on words that are spelled by tones."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import Run, train
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from amae_plugin import load_model
from amae_plugin.checkpoints import Checkpoint
from amae_plugin.cli.main import main
from amae_plugin.data.manifest import write_manifest
from amae_plugin.inspection import describe

RECIPE = "finetune_mae_ast_frame_tiny"
HERTZ = {"A": 300, "B": 900, "C": 2500, "|": 0}
MICRO = [
    "model.pretrained=null",
    "+model.encoder={_name:amae_mae_ast,patch_size:[4,128],embed_dim:48,depth:2,num_heads:3,dropout:0}",
    "task.target_length=256",
    "task.clips_per_update=8",
    "dataset.batch_size=8",
    "common.log_interval=1",
    "lr_scheduler.warmup_updates=10",
    "optimization.lr=[4e-3]",
    "optimization.max_update=90",
    "dataset.validate_interval_updates=40",
    "checkpoint.save_interval_updates=40",
    "checkpoint.best_checkpoint_metric=wer",
    "model.mask_ratio_time=0",
    "model.mask_ratio_frequency=0",
    "model.dropout=0",
]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips to train on and 8 others to validate, each letter a tone of 100 ms, with fairseq's files."""
    folder = tmp_path_factory.mktemp("spoken")
    rng = np.random.default_rng(0)
    for split, clips in (("train", 24), ("valid", 8)):
        rows, lines = [], []
        for index in range(clips):
            letters = [*rng.choice(list("ABC"), rng.integers(1, 4)), "|", *rng.choice(list("ABC"), 2), "|"]
            time = np.arange(1600) / 16_000
            tones = [np.sin(2 * np.pi * HERTZ[letter] * time) * np.hanning(1600) for letter in letters]
            samples = 0.3 * np.concatenate(tones) + rng.normal(0, 0.003, 1600 * len(letters))
            soundfile.write(folder / f"{split}{index}.flac", samples, 16_000)
            rows.append((f"{split}{index}.flac", len(samples)))
            lines.append(" ".join(letters))
        write_manifest(folder / f"{split}.tsv", ".", rows)
        (folder / f"{split}.ltr").write_text("\n".join(lines) + "\n")
    (folder / "dict.ltr.txt").write_text("| 64\nA 40\nB 40\nC 40\n")
    return folder


@pytest.fixture(scope="module")
def trained(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = train(
        tmp_path_factory.mktemp("trained"),
        *(f"task.data={spoken}", "checkpoint.keep_interval_updates=-1"),
        recipe=RECIPE,
        smaller=MICRO,
    )
    assert run.returncode == 0, run.output
    return run


def test_a_run_learns_and_its_best_checkpoint_is_that_of_the_fewest_errors(
    spoken: Path, trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = [float(entry["valid_wer"]) for entry in trained.logged("valid")]
    assert len(rates) >= 2 and min(rates) < 0.3
    path = trained.folder / "checkpoints" / "checkpoint_best.pt"
    checkpoint = Checkpoint.read(path)
    assert checkpoint.extra_state["best"] == pytest.approx(min(rates))

    assert main(["evaluate", str(path), "--data", str(spoken), "--split", "valid", "--workers", "0"]) == 0
    results = trained.folder / "evaluation" / "valid"
    found = json.loads((results / "metrics.json").read_text())
    assert found["wer"] == pytest.approx(min(rates), abs=1e-6)
    assert (found["clips"], found["words"]["length"]) == (8, 16)
    assert f"{found['wer']:.4f}" in next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("words")
    )
    with (results / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    texts = [line.replace(" ", "").replace("|", " ").strip() for line in (spoken / "valid.ltr").read_text().split("\n")]
    assert [row["reference"] for row in rows] == texts[:8]
    wrong = sum(int(row[f"words_{kind}"]) for row in rows for kind in ("substitutions", "deletions", "insertions"))
    assert wrong == round(found["wer"] * 16)

    facts = describe(checkpoint)
    assert (facts["metric"], facts["units"]["symbols"][4:], facts["classes"]) == ("wer", ["|", "A", "B", "C"], None)
    model = load_model(path, device="cpu")
    clips = [torch.from_numpy(soundfile.read(spoken / f"valid{index}.flac", dtype="float32")[0]) for index in range(8)]
    heard = [found.text for found in model.transcribe(clips, sample_rate=16_000)]
    assert heard == [row["hypothesis"] for row in rows]
    assert model.embed(spoken / "valid0.flac").shape == (48,)
    # Five clips on end are longer than the input: in windows, they are heard as one by one.
    together = model.transcribe(torch.cat(clips), sample_rate=16_000)
    assert len(together.words) == pytest.approx(16, abs=3)


def test_a_run_continues_within_an_epoch(spoken: Path, trained: Run, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (stopped,) = (trained.folder / "checkpoints").glob("checkpoint_*_40.pt")
    shutil.copy(stopped, tmp_path / "run" / "checkpoints" / "checkpoint_last.pt")
    resumed = train(tmp_path / "run", f"task.data={spoken}", recipe=RECIPE, smaller=MICRO)
    assert resumed.returncode == 0, resumed.output
    assert list(resumed.losses()) == list(range(41, 91))
    assert resumed.losses() == {update: loss for update, loss in trained.losses().items() if update > 40}


def test_fairseq_reads_the_checkpoint_without_its_data(trained: Run) -> None:
    path = trained.folder / "checkpoints" / "checkpoint_last.pt"
    models, _, task = load_model_ensemble_and_task([str(path)], {"data": "/nowhere"})
    source = torch.randn(2, 128, 128)
    assert torch.equal(models[0].eval()(source)["log_probs"], Checkpoint.read(path).model()(source)["log_probs"])
    assert task.units.symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "A", "B", "C")
