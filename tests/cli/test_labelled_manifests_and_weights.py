import errno
import os

import numpy as np
import pytest
import soundfile

from amae_plugin.cli.main import main
from amae_plugin.data.labels import Labels, read_names
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.sampling import balanced_weights


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(800), 16_000)


def rows(out, split):
    manifest = Manifest.read(out / f"{split}.tsv")
    Labels.read(out / f"{split}.lbl", out / "labels.txt", len(manifest), multi=True)
    return len(manifest)


def test_voxceleb1(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    for speaker in ("id10001", "id10002"):
        for number in range(3):
            sound(tmp_path / "vox" / "wav" / speaker / "video" / f"{number}.wav")
            lines.append(f"{number + 1} {speaker}/video/{number}.wav\n")
    (tmp_path / "vox" / "iden_split.txt").write_text("".join(lines))
    (tmp_path / "veri_test.txt").write_text("1 id10001/video/0.wav id10001/video/1.wav\n")
    arguments = ["voxceleb1", "vox", "--split", "iden_split.txt", "--out", "out", "--trials", "veri_test.txt"]
    assert main(["manifest", *arguments]) == 0
    output, errors = capsys.readouterr()
    assert "files: 8 (train 2, valid 2, test 2, trials 2)" in output
    assert f"classes: 2, listed in {tmp_path / 'out' / 'labels.txt'}" in output
    assert f"--config-name finetune_audio_mae_tiny task.data={tmp_path / 'out'} " in output
    assert "warning: train: 2 clips, as published there are 138,361" in errors
    assert [rows(tmp_path / "out", split) for split in ("train", "valid", "test")] == [2, 2, 2]

    for recipe in ("pretrain_audio_mae_tiny", "finetune_audio_mae_tiny"):
        (tmp_path / "outputs" / recipe).mkdir(parents=True)
    assert main(["manifest", *arguments]) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.endswith(" hydra.run.dir=outputs/pretrain_audio_mae_tiny_out")
    pretrained = "model.pretrained=outputs/pretrain_audio_mae_tiny_out/checkpoints/checkpoint_last.pt"
    assert second.endswith(f" {pretrained} hydra.run.dir=outputs/finetune_audio_mae_tiny_out")

    (tmp_path / "vox" / "wav" / "id10001" / "video" / "2.wav").unlink()
    assert main(["manifest", *arguments]) == 2
    assert "1 of 6 files listed in iden_split.txt" in capsys.readouterr().err
    assert main(["manifest", *arguments, "--allow-missing"]) == 0
    assert "left out" in capsys.readouterr().err


def test_speech_commands(tmp_path, capsys):
    for word in ("yes", "bed"):
        for number in range(3):
            sound(tmp_path / word / f"{number}.wav")
    (tmp_path / "validation_list.txt").write_text("yes/0.wav\nbed/0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/1.wav\nbed/1.wav\n")
    out = tmp_path / "out"
    assert main(["manifest", "speech_commands", str(tmp_path), "--out", str(out), "--task", "v2-35"]) == 0
    assert [rows(out, split) for split in ("train", "valid", "test")] == [2, 2, 2]
    assert len(read_names(out / "labels.txt")) == 35
    sound(tmp_path / "_background_noise_" / "noise.wav")
    arguments = ["manifest", "speech_commands", str(tmp_path), "--out", str(out), "--task", "v1-12"]
    assert main(arguments) == 2
    assert "10 seconds suffice" in capsys.readouterr().err
    soundfile.write(tmp_path / "_background_noise_" / "noise.wav", np.zeros(160_000), 16_000)
    assert main([*arguments, "--other-words", "all", "--workers", "1"]) == 0
    assert [rows(out, split) for split in ("train", "valid", "test")] == [3, 3, 3]


def test_audioset_and_its_weights(tmp_path, capsys):
    (tmp_path / "labels.csv").write_text('index,mid,display_name\n0,/m/a,A\n1,/m/b,"B, b"\n2,/m/c,C\n')
    (tmp_path / "train.csv").write_text("# c\n" + "".join(f'clip{i}, 0.0, 10.0, "/m/a"\n' for i in range(9)))
    (tmp_path / "more_train.csv").write_text('rare, 0.0, 10.0, "/m/a,/m/b"\n')
    (tmp_path / "eval.csv").write_text('clip9, 0.0, 10.0, "/m/c"\n')
    for name in (*(f"clip{i}" for i in range(10)), "rare"):
        sound(tmp_path / "audio" / f"{name}.wav")
    tables = [str(tmp_path / name) for name in ("train.csv", "more_train.csv", "eval.csv")]
    arguments = ["--audio", str(tmp_path / "audio"), "--labels", str(tmp_path / "labels.csv"), "--out", str(tmp_path)]
    assert main(["manifest", "audioset", "--csv", *tables, *arguments]) == 0
    assert [rows(tmp_path, split) for split in ("train", "valid", "test")] == [10, 1, 1]

    capsys.readouterr()
    assert main(["weights", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "10 clips, 1.10 labels a clip, 3 classes" in output
    assert "rarest class: /m/b with 1 clips" in output
    assert "commonest class: /m/a with 10 clips" in output
    assert "classes without a clip: 1" in output
    weights = np.load(tmp_path / "train.weights.npy")
    assert weights.dtype == np.float32
    assert weights[:9] == pytest.approx(np.full(9, 1000 / 10.01))
    assert weights[9] == pytest.approx(1000 / 10.01 + 1000 / 1.01)
    assert os.fspath(tmp_path / "train.weights.npy") in output


def test_esc50_librispeech_iemocap_and_labelled_folders(tmp_path):
    sound(tmp_path / "esc" / "audio" / "1.wav")
    sound(tmp_path / "esc" / "audio" / "2.wav")
    (tmp_path / "esc" / "meta").mkdir()
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category\n1.wav,1,0,dog\n2.wav,2,0,dog\n"
    )
    out = str(tmp_path / "out")
    assert main(["manifest", "esc50", str(tmp_path / "esc"), "--out", out, "--fold", "2"]) == 0
    assert rows(tmp_path / "out", "train") == rows(tmp_path / "out", "test") == 1

    sound(tmp_path / "libri" / "train-clean-100" / "1" / "1.flac")
    sound(tmp_path / "libri" / "dev-clean" / "2" / "1.flac")
    assert main(["manifest", "librispeech", str(tmp_path / "libri"), "--out", out]) == 0
    assert not (tmp_path / "out" / "train.lbl").exists()

    for session in range(1, 6):
        folder = tmp_path / "emo" / f"Session{session}"
        sound(folder / "sentences" / "wav" / f"Ses0{session}F_impro01" / f"Ses0{session}F_impro01_F000.wav")
        (folder / "dialog" / "EmoEvaluation").mkdir(parents=True)
        line = f"[6.2901 - 8.2357]\tSes0{session}F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\n"
        (folder / "dialog" / "EmoEvaluation" / "table.txt").write_text(line)
    assert main(["manifest", "iemocap", str(tmp_path / "emo"), "--out", out, "--fold", "1"]) == 0
    assert [rows(tmp_path / "out", split) for split in ("train", "valid", "test")] == [3, 1, 1]

    assert main(["manifest", "folder", str(tmp_path / "libri"), "--out", out, "--labels"]) == 0
    assert read_names(tmp_path / "out" / "labels.txt") == ("dev-clean", "train-clean-100")
    assert main(["manifest", "folder", str(tmp_path / "libri"), "--out", out, "--test-fraction", "0.1"]) == 2


def test_weights_need_labels(tmp_path, capsys):
    sound(tmp_path / "a.wav")
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.wav\t800\n")
    assert main(["weights", str(tmp_path)]) == 2
    assert "labels.txt: cannot read the labels" in capsys.readouterr().err
    (tmp_path / "valid.tsv").write_text(f"{tmp_path}\n")
    assert main(["weights", str(tmp_path), "--split", "valid"]) == 2
    assert "holds no clips" in capsys.readouterr().err


def test_weights_that_cannot_be_written_leave_the_old_ones(tmp_path, capsys, monkeypatch):
    sound(tmp_path / "tree" / "x" / "a.wav")
    arguments = ["--out", str(tmp_path), "--labels", "--valid-fraction", "0"]
    assert main(["manifest", "folder", str(tmp_path / "tree"), *arguments]) == 0
    assert main(["weights", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(file, array):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    assert main(["weights", str(tmp_path)]) == 2
    assert "train.weights.npy: cannot write the weights (No space left on device)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_weights_of_one_label_a_clip_balance_the_classes(tmp_path):
    (tmp_path / "l.txt").write_text("a\nb\n")
    (tmp_path / "l.lbl").write_text("a\n" * 99 + "b\n")
    labels = Labels.read(tmp_path / "l.lbl", tmp_path / "l.txt", 100)
    weights = balanced_weights(labels)
    assert weights[:99].sum() == pytest.approx(weights[99], rel=0.02)
