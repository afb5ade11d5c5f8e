from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import BIN, Run, environment, train, train_and_kill, train_in_turn, train_on_two_ranks
from tensorboardX.proto import event_pb2


def tensorboard_tags(folder: Path) -> dict[str, bytes]:
    """Tags in a folder of TensorBoard events; of pictures the last one's bytes."""
    tags = {}
    for path in folder.glob("events.*"):
        data, position = path.read_bytes(), 0
        while position < len(data):
            length = int.from_bytes(data[position : position + 8], "little")
            event = event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
            position += length + 16
            tags.update({value.tag: value.image.encoded_image_string for value in event.summary.value})
    return tags


def test_loss_falls_and_everything_is_logged(corpus: Path, tmp_path: Path) -> None:
    # The manifests are named relative to where the command is typed, which is not where the configs are.
    shutil.copytree(corpus, tmp_path / "my manifests")
    run = train(
        Path("run"),
        "task.data=my manifests",
        "optimization.max_update=40",
        "task.picture_interval=20",
        "checkpoint.save_interval_updates=20",
        "dataset.validate_interval_updates=20",
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.output
    losses = [float(loss) for loss in run.losses().values()]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert {"loss", "lr", "gnorm", "clips_per_second", "data_wait", "ups"} <= set(run.logged("train_inner")[-1])
    assert float(run.logged("valid")[-1]["valid_loss"]) < float(run.logged("valid")[0]["valid_loss"])

    folder = tmp_path / "run"
    assert {"loss", "lr", "gnorm", "clips_per_second", "data_wait"} <= set(
        tensorboard_tags(folder / "tensorboard" / "train_inner")
    )
    picture = tensorboard_tags(folder / "tensorboard" / "pictures")["reconstruction"]
    assert picture.startswith(b"\x89PNG")
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"checkpoint_last.pt", "checkpoint_best.pt"} <= names
    assert not [name for name in names if name.endswith(".tmp")]


def test_checkpoint_loads_by_fairseq_and_computes_the_same(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path, f"task.data={corpus}", "optimization.max_update=3")
    assert run.returncode == 0, run.output
    script = (
        "import sys, torch, amae_plugin\n"
        "from fairseq.checkpoint_utils import load_model_ensemble_and_task\n"
        "from amae_plugin.models.audio_mae import AudioMAE\n"
        "models, cfg, task = load_model_ensemble_and_task([sys.argv[1]])\n"
        "model = models[0].eval()\n"
        "plain = AudioMAE(model.config).eval()\n"
        "plain.load_state_dict(model.state_dict())\n"
        "source = torch.randn(2, 128, 128)\n"
        "assert torch.equal(model(source, seed=torch.arange(2))['prediction'],"
        " plain(source, seed=torch.arange(2))['prediction'])\n"
        "assert cfg.task.mean == -6.845978\n"
        "print('equal')\n"
    )
    path = str(tmp_path / "checkpoints" / "checkpoint_last.pt")
    done = subprocess.run(
        [str(BIN / "python"), "-c", script, path],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout.endswith("equal\n"), done.stderr


def test_killed_run_continues_as_if_it_had_not_been_killed(corpus: Path, tmp_path: Path) -> None:
    overrides = [
        f"task.data={corpus}",
        "optimization.max_update=24",
        "checkpoint.save_interval_updates=7",
        "dataset.validate_interval_updates=7",
        "dataset.num_workers=2",
    ]
    whole = train(tmp_path / "whole", *overrides)
    assert whole.returncode == 0, whole.output

    killed = train_and_kill(tmp_path / "killed", 10, *overrides)
    assert 10 <= max(killed.losses()) < 24
    for path in (tmp_path / "killed" / "checkpoints").glob("*.pt"):
        torch.load(path, weights_only=False)

    # Another number of workers, too: it must not matter.
    resumed = train(tmp_path / "killed", *overrides, "dataset.num_workers=1")
    assert resumed.returncode == 0, resumed.output
    assert 8 <= min(resumed.losses()) <= max(killed.losses()) + 1
    for name in ("loss", "gnorm", "lr"):
        expected = {entry["num_updates"]: entry[name] for entry in whole.logged("train_inner")}
        for entry in (*killed.logged("train_inner"), *resumed.logged("train_inner")):
            assert entry[name] == expected[entry["num_updates"]]
    validations = {entry["valid_num_updates"]: entry["valid_loss"] for entry in whole.logged("valid")}
    for entry in resumed.logged("valid"):
        assert entry["valid_loss"] == validations[entry["valid_num_updates"]]


def test_global_batch_does_not_depend_on_how_it_is_cut(corpus: Path, tmp_path: Path) -> None:
    # Without the local decoder, whose dropout draws anew for each batch.
    overrides = [f"task.data={corpus}", "optimization.max_update=8", "model.decoder=global"]
    at_once = train(tmp_path / "at_once", *overrides)
    accumulated = train(tmp_path / "accumulated", *overrides, "dataset.batch_size=4")
    on_two = train_on_two_ranks(tmp_path / "on_two", *overrides, "dataset.batch_size=4")
    for run in (at_once, accumulated, on_two):
        assert run.returncode == 0, run.output
    expected = {update: float(loss) for update, loss in at_once.losses().items()}
    for run in (accumulated, on_two):
        assert {update: float(loss) for update, loss in run.losses().items()} == pytest.approx(expected, rel=1e-5)


def test_two_ranks_share_one_clock(corpus: Path, tmp_path: Path) -> None:
    seconds = 20
    schedule = [
        "lr_scheduler._name=amae_cosine_by_time",
        f"optimization.stop_time_hours={seconds / 3600}",
        "optimization.max_update=1000000",
        "lr_scheduler.warmup_updates=100000",
    ]
    run = train_on_two_ranks(tmp_path, f"task.data={corpus}", *schedule, "dataset.batch_size=4")
    assert run.returncode == 0, run.output
    assert "Stopping training due to cumulative_training_time" in run.output
    rates = [float(rate) for rate in re.findall(r'"lr": "([^"]+)"', run.output)]
    assert max(rates) > 4e-4
    assert rates[-1] < 1e-4


def test_clip_that_cannot_be_decoded_stops_training_or_is_counted(corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "audio"
    root.mkdir()
    lines = (corpus / "train.tsv").read_text().splitlines()
    broken = root / "broken.wav"
    broken.write_bytes(b"RIFF" + b"\0" * 100)
    entries = [f"{lines[0]}/{line}" for line in lines[1:]]
    (tmp_path / "train.tsv").write_text("\n".join(["/", *entries, f"{broken}\t16000"]) + "\n")
    shutil.copy(corpus / "valid.tsv", tmp_path / "valid.tsv")
    overrides = [f"task.data={tmp_path}", "optimization.max_update=5"]  # one epoch: every clip is met

    stopped = train(tmp_path / "stopped", *overrides)
    assert stopped.returncode != 0
    assert str(broken) in stopped.output

    skipped = train(tmp_path / "skipped", *overrides, "task.on_bad_audio=skip")
    assert skipped.returncode == 0, skipped.output
    assert "skipped clip 1" in skipped.output
    assert str(broken) in skipped.output


def test_padding_can_be_left_out_of_the_loss(corpus: Path, tmp_path: Path) -> None:
    overrides = [f"task.data={corpus}", "optimization.max_update=4", "task.augmentations=null"]
    runs = [[*overrides, f"task.score_padding={choice}"] for choice in ("true", "false")]
    scored, left_out = train_in_turn(tmp_path, runs, "pretrain_audio_mae_tiny")
    assert scored.returncode == left_out.returncode == 0, scored.output + left_out.output
    assert scored.losses() != left_out.losses()


def test_choices_of_the_recipe_train(corpus: Path, tmp_path: Path) -> None:
    choices = ["model.bf16=true", "model.decoder=global", "model.masking=time_frequency"]
    common = [f"task.data={corpus}", "optimization.max_update=20"]
    for run in train_in_turn(tmp_path, [[*common, choice] for choice in choices], "pretrain_audio_mae_tiny"):
        assert run.returncode == 0, run.output
        losses = [float(loss) for loss in run.losses().values()]
        assert len(losses) == 20
        assert sum(losses[-5:]) < sum(losses[:5])


WRONG_SETTINGS = [
    (["task.data=nowhere"], "task.data=nowhere: there is no folder"),
    (["task.augmentations=shuffle"], "task.augmentations: no shuffle"),
    (["dataset.batch_size=3"], "task.clips_per_update=8 is not a multiple of dataset.batch_size=3"),
    (["model.masking=sieve"], "no masking strategy is called 'sieve'"),
    (["common.bf16=true"], "set model.bf16=true"),
]


@pytest.fixture(scope="module")
def refused(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """What became of each of the wrong settings."""
    runs = [[f"task.data={corpus}", *overrides] for overrides, _ in WRONG_SETTINGS]
    return train_in_turn(tmp_path_factory.mktemp("refused"), runs, "pretrain_audio_mae_tiny")


@pytest.mark.parametrize("index", range(len(WRONG_SETTINGS)), ids=[message for _, message in WRONG_SETTINGS])
def test_wrong_settings_say_what_to_mend(index: int, refused: list[Run]) -> None:
    assert refused[index].returncode != 0
    assert WRONG_SETTINGS[index][1] in refused[index].output
