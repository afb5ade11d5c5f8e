"""``--fold all``: the manifests of all runs of a cross-validation."""

import numpy as np
import pytest
import soundfile

from amae_plugin.cli.main import main
from amae_plugin.data.labels import Labels
from amae_plugin.data.manifest import Manifest
from amae_plugin.recipe_files import recipe_folder

FOLDS = ("fold1", "fold2", "fold3", "fold4", "fold5")
WORDS = ("dog", "rain", "siren")


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(800), 16_000)


@pytest.fixture
def esc50(tmp_path):
    """Three classes; ``siren`` in the first two folds only."""
    root = tmp_path / "ESC-50-master"
    lines = ["filename,fold,target,category\n"]
    for fold in range(1, 6):
        for target, word in enumerate(WORDS[: 3 if fold < 3 else 2]):
            name = f"{fold}-1-A-{target}.wav"
            sound(root / "audio" / name)
            lines.append(f"{name},{fold},{target},{word}\n")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("".join(lines))
    return root


@pytest.fixture
def iemocap(tmp_path):
    root = tmp_path / "IEMOCAP"
    for session in range(1, 6):
        dialog = f"Ses{session:02d}F_impro01"
        lines = []
        for number, emotion in enumerate(("ang", "exc", "neu", "sad", "fru")):
            clip = f"{dialog}_F{number:03d}"
            sound(root / f"Session{session}" / "sentences" / "wav" / dialog / f"{clip}.wav")
            lines.append(f"[{number}.0 - {number}.9]\t{clip}\t{emotion}\t[2.5, 2.5, 2.5]\n")
        tables = root / f"Session{session}" / "dialog" / "EmoEvaluation"
        tables.mkdir(parents=True)
        (tables / f"{dialog}.txt").write_text("".join(lines))
    return root


def clips(folder, split):
    """Each clip of a split with its labels."""
    manifest = Manifest.read(folder / f"{split}.tsv")
    labels = Labels.read(folder / f"{split}.lbl", folder / "labels.txt", len(manifest))
    return {(manifest.name(i), *(labels.names[j] for j in labels[i])) for i in range(len(manifest))}


def check_cross_validation(out, total):
    assert sorted(path.name for path in out.iterdir()) == list(FOLDS)
    tested = [clips(out / fold, "test") for fold in FOLDS]
    assert sum(map(len, tested)) == len(set().union(*tested)) == total
    for fold, test in zip(FOLDS, tested):
        train, valid = clips(out / fold, "train"), clips(out / fold, "valid")
        assert train | valid | test == set().union(*tested)
        assert not train & (valid | test)
    assert len({(out / fold / "labels.txt").read_bytes() for fold in FOLDS}) == 1


def test_esc50(esc50, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["manifest", "esc50", "ESC-50-master", "--out", "out", "--fold", "all"]) == 0
    out = tmp_path / "out"
    check_cross_validation(out, total=12)
    assert all(clips(out / fold, "valid") == clips(out / fold, "test") for fold in FOLDS)
    output, errors = capsys.readouterr()
    assert "fold1, files: 15 (train 9, valid 3, test 3), 0.00 hours" in output
    assert "fold5, files: 14 (train 10, valid 2, test 2), 0.00 hours" in output
    assert "classes: 3" in output
    assert "manifests: train.tsv, valid.tsv, test.tsv in each of" in output
    assert all(f"  {out / fold}\n" in output for fold in FOLDS)
    assert (
        f"fairseq-hydra-train -m --config-dir {recipe_folder()} --config-name finetune_audio_mae_esc50 "
        f"task.data={out}\n"
    ) in output
    assert errors.count("warning: fold 4: 2 clips, as published there are 400") == 1


def test_esc50_validated_on_the_next_fold(esc50, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["manifest", "esc50", str(esc50), "--valid-fold", "next"]
    assert main([*arguments, "--out", str(out), "--fold", "all"]) == 0
    check_cross_validation(out, total=12)
    for position, fold in enumerate(FOLDS):
        assert clips(out / fold, "valid") == clips(out / FOLDS[(position + 1) % 5], "test")
    # With folds 1 and 2 held out, no siren is left to train on.
    errors = capsys.readouterr().err
    assert "warning: fold1: train: no clip of 1 of the 3 classes: siren" in errors
    assert errors.count("no clip of") == 1

    assert main([*arguments, "--out", str(tmp_path / "one"), "--fold", "5"]) == 0
    for split in ("train", "valid", "test"):
        assert (tmp_path / "one" / f"{split}.tsv").read_bytes() == (out / "fold5" / f"{split}.tsv").read_bytes()


def test_iemocap(iemocap, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["manifest", "iemocap", str(iemocap), "--seed", "3"]
    assert main([*arguments, "--out", str(out), "--fold", "all"]) == 0
    check_cross_validation(out, total=20)
    for session, fold in enumerate(FOLDS, start=1):
        assert all(name.startswith(f"Session{session}/") for name, _ in clips(out / fold, "test"))
    output, errors = capsys.readouterr()
    assert "fold3, files: 20 (train 13, valid 3, test 4), 0.00 hours" in output
    assert f"--config-name finetune_audio_mae_tiny task.data={out / 'fold1'},{out / 'fold2'}," in output
    assert " model.pretrained=null +model@model.encoder=amae_audio_mae_tiny task.mean=auto task.std=auto\n" in output
    assert errors.count("warning: hap: 5 clips, as published there are 1,636") == 1

    assert main([*arguments, "--out", str(tmp_path / "one"), "--fold", "4"]) == 0
    for split in ("train", "valid", "test"):
        assert (tmp_path / "one" / f"{split}.tsv").read_bytes() == (out / "fold4" / f"{split}.tsv").read_bytes()


def test_a_clip_that_cannot_be_read_is_left_out_of_every_fold(esc50, tmp_path, capsys):
    (esc50 / "audio" / "3-1-A-0.wav").write_bytes(b"broken" * 50)
    out = tmp_path / "out"
    assert main(["manifest", "esc50", str(esc50), "--out", str(out), "--fold", "all"]) == 0
    check_cross_validation(out, total=11)
    assert f"unreadable: 1, listed with reasons in {out / 'fold1' / 'unreadable.tsv'}" in capsys.readouterr().out
    assert all((out / fold / "unreadable.tsv").read_text().startswith("audio/3-1-A-0.wav\t") for fold in FOLDS)


def test_missing_clips(esc50, iemocap, tmp_path, capsys):
    (esc50 / "audio" / "1-1-A-0.wav").unlink()
    next(iemocap.rglob("Session2/**/*_F000.wav")).unlink()
    for layout, root, listed in (("esc50", esc50, 12), ("iemocap", iemocap, 20)):
        out = tmp_path / layout
        arguments = ["manifest", layout, str(root), "--out", str(out), "--fold", "all"]
        assert main(arguments) == 2
        assert f"1 of {listed} files" in capsys.readouterr().err
        assert not out.exists()
        assert main([*arguments, "--allow-missing"]) == 0
        assert capsys.readouterr().err.count("left out") == 1
        check_cross_validation(out, total=listed - 1)


def test_one_validation_fold_for_all_runs_is_refused(esc50, tmp_path, capsys):
    arguments = ["manifest", "esc50", str(esc50), "--out", str(tmp_path / "out"), "--fold", "all"]
    assert main([*arguments, "--valid-fold", "3"]) == 2
    error = capsys.readouterr().err
    assert "one of the runs tests on fold 3" in error
    assert "--valid-fold next" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--fold", "6"], ["--fold", "every"], ["--fold", "1", "--valid-fold", "all"]])
def test_other_folds_are_refused(esc50, tmp_path, options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["manifest", "esc50", str(esc50), "--out", str(tmp_path / "out"), *options])
    assert stop.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
