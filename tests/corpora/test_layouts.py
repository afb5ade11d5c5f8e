"""What the layouts of all corpora have in common, on a small copy of each corpus."""

import codecs
import shlex
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from amae_plugin.cli.main import main
from amae_plugin.corpora.layouts import LAYOUTS
from amae_plugin.data.labels import Labels
from amae_plugin.data.manifest import Manifest
from amae_plugin.recipes import open_recipe


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def folder(root, sound):
    for number in range(6):
        sound(root / f"{number}.wav")
    return [str(root)]


def labelled_folder(root, sound):
    for number in range(6):
        sound(root / "dog" / f"{number}.wav")
        sound(root / "rain" / f"{number}.wav")
    return [str(root), "--labels", "--test-fraction", "0.2"]


def shards(root, sound):
    root.mkdir(parents=True)
    for split in ("train", "valid"):
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            for number in range(3):
                sound(root / "clip.wav")
                archive.add(root / "clip.wav", f"{number}.wav")
                (root / "clip.wav").unlink()
    return [str(root)]


def speech_commands(root, sound):
    clips = [f"{word}/{number}_nohash_0.wav" for number in range(4) for word in ("yes", "bed")]
    for clip in clips:
        sound(root / clip)
    write_lines(root / "validation_list.txt", clips[4:6])
    write_lines(root / "testing_list.txt", clips[6:])
    sound(root / "_background_noise_" / "tap.wav", seconds=10)
    return [str(root), "--task", "v1-12"]


def voxceleb1(root, sound):
    clips = [f"id1000{speaker}/video/0000{number}.wav" for number in range(4) for speaker in (1, 2)]
    for clip in clips:
        sound(root / "wav" / clip)
    write_lines(root / "iden_split.txt", [f"{split} {clip}" for split, clip in zip("11112233", clips)])
    write_lines(root / "veri_test.txt", [f"1 {clips[0]} {clips[2]}", f"0 {clips[4]} {clips[5]}"])
    return [str(root), "--trials", "veri_test.txt"]


def audioset(root, sound):
    for number in range(6):
        sound(root / "clips" / f"Yclip{number}.wav")
    write_lines(root / "class_labels_indices.csv", ["index,mid,display_name", "0,/m/a,A", '1,/m/b,"B, b"'])
    table = [f'clip{number}, 0.000, 10.000, "/m/a,/m/b"' for number in range(6)]
    write_lines(root / "balanced_train_segments.csv", table[:4])
    write_lines(root / "eval_segments.csv", table[4:])
    tables = [str(root / name) for name in ("balanced_train_segments.csv", "eval_segments.csv")]
    return ["--csv", *tables, "--audio", str(root / "clips"), "--labels", str(root / "class_labels_indices.csv")]


def esc50(root, sound):
    table = [(f"{fold}-{target}.wav", fold, target, name) for fold in range(1, 6) for target, name in enumerate("ab")]
    for name, *_ in table:
        sound(root / "audio" / name)
    rows = [",".join(map(str, row)) for row in table]
    write_lines(root / "meta" / "esc50.csv", ["filename,fold,target,category", *rows])
    return [str(root), "--fold", "1"]


def librispeech(root, sound):
    for part in ("train-clean-100", "dev-clean", "test-clean"):
        for number in range(3):
            sound(root / part / "1" / "2" / f"1-2-{number}.flac")
    return [str(root)]


def labelled_librispeech(root, sound):
    command = librispeech(root, sound)
    for part in ("train-clean-100", "dev-clean", "test-clean"):
        write_lines(root / part / "1" / "2" / "1-2.trans.txt", [f"1-2-{number} A FEW WORDS" for number in range(3)])
    return [*command, "--labels", "ltr"]


def text(root, sound):
    for number in range(6):
        sound(root / "clips" / f"{number}.wav")
    write_lines(root / "clips.tsv", [f"clips/{number}.wav\tA few words." for number in range(6)])
    return [str(root / "clips.tsv"), "--labels", "ltr", "--test-fraction", "0.2"]


def iemocap(root, sound):
    for session in range(1, 6):
        clips = [f"Ses0{session}F_impro01_F00{number}" for number in range(3)]
        folder = root / f"Session{session}"
        for clip in clips:
            sound(folder / "sentences" / "wav" / f"Ses0{session}F_impro01" / f"{clip}.wav")
        lines = [
            f"[1.0 - 2.0]\t{clip}\t{emotion}\t[2.5, 2.5, 2.5]" for clip, emotion in zip(clips, ("ang", "exc", "neu"))
        ]
        write_lines(folder / "dialog" / "EmoEvaluation" / "table.txt", lines)
    return [str(root), "--fold", "2"]


def videos(root, video):
    for number in range(6):
        video(root / f"{number}.mkv")
    return [str(root), "--test-fraction", "0.2"]


def pairs(root, sound):
    for number in range(6):
        for name in (f"{number}.wav", f"{number}_again.wav"):
            sound(root / name)
        Image.new("L", (2, 2)).save(root / f"{number}.png")
    return [str(root), "--test-fraction", "0.2"]


def vggsound(root, video):
    rows = [f"clip{number},{number},rain,{'train' if number < 4 else 'test'}" for number in range(6)]
    for number in range(6):
        video(root / "clips" / f"clip{number}_{number:06d}.mp4")
    write_lines(root / "vggsound.csv", rows)
    return ["--csv", str(root / "vggsound.csv"), "--videos", str(root / "clips")]


OF_VIDEOS = (videos, vggsound)
LISTED = (speech_commands, voxceleb1, audioset, esc50, iemocap, text, vggsound)
EXAMPLES = (*LISTED, shards, librispeech, labelled_librispeech, folder, labelled_folder, videos, pairs)


@pytest.fixture(params=EXAMPLES, ids=lambda example: example.__name__)
def command(request, tmp_path, sound, video):
    """A command line without ``--out``, and the folder of the corpus."""
    name = request.param.__name__.removeprefix("labelled_")
    writes = video if request.param in OF_VIDEOS else sound
    return ["manifest", name, *request.param(tmp_path / "corpus", writes)]


def read(out):
    """Name and labels of each clip of each split; None for labels where the split has none."""
    splits = {}
    for path in out.glob("*.tsv"):
        if path.name == "unreadable.tsv":
            continue
        manifest = Manifest.read(path)
        labels = [None] * len(manifest)
        if path.with_suffix(".lbl").exists():
            found = Labels.read(path.with_suffix(".lbl"), out / "labels.txt", len(manifest), multi=True)
            labels = [tuple(found.names[index] for index in found[clip]) for clip in range(len(manifest))]
        splits[path.stem] = [(manifest.name(clip), labels[clip]) for clip in range(len(manifest))]
    return splits


def first_file(out, split):
    """The file of the first clip of a split."""
    return Path(Manifest.read(out / f"{split}.tsv")[0].path)


def test_every_layout_has_an_example():
    assert {example.__name__.removeprefix("labelled_") for example in EXAMPLES} == LAYOUTS.keys()


def test_splits_do_not_overlap_and_the_output_says_what_comes_next(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    relative = [argument.replace(f"{tmp_path}/", "") for argument in command]
    assert main([*relative, "--out", "out"]) == 0
    out = tmp_path / "out"
    splits = read(out)
    assert splits.keys() - {"test", "trials"} == {"train", "valid"}
    for split in splits.keys() - {"trials"}:
        manifest = Manifest.read(out / f"{split}.tsv")
        assert (out / f"{split}.tsv").read_text().splitlines()[0] == manifest.root
        assert manifest.root.startswith(str(tmp_path / "corpus"))
        assert len(set(splits[split])) == len(splits[split]) > 0
        assert not set(splits[split]) & set(splits["train"]) or split == "train"
    labelled = {split for split, clips in splits.items() if any(labels for _, labels in clips)}
    assert labelled in (set(), splits.keys() - {"trials"})
    assert (out / "labels.txt").exists() == bool(labelled)

    output = capsys.readouterr().out
    total = sum(map(len, splits.values()))
    assert f"files: {total} (train {len(splits['train'])}," in output
    assert "000 Hz (" in output and "unreadable: 0\n" in output
    assert ("classes: " in output) == bool(labelled)
    # What comes next are commands of recipes that exist and have these settings, and a shell takes them as they are.
    commands = [shlex.split(line) for line in output.splitlines() if line.startswith("  fairseq-hydra-train ")]
    pictures = Manifest.read(out / "train.tsv").has_pictures
    transcripts = any(out.glob("dict.*.txt"))
    system = "mae_ast_frame" if transcripts else "cav_mae" if pictures else "audio_mae"
    kinds = ["pretrain", "finetune"] if labelled or transcripts else ["pretrain"]
    assert [command[4] for command in commands] == [f"{kind}_{system}_tiny" for kind in kinds]
    for _, _, folder, _, recipe, *overrides in commands:
        with open_recipe(recipe, Path(folder), overrides) as config:
            assert config.task.data == str(out)
            assert transcripts or (config.task.mean, config.task.std) == ("auto", "auto")


def test_the_same_command_writes_the_same_files(command, tmp_path):
    for out, workers in (("a", "1"), ("b", "4")):
        assert main([*command, "--out", str(tmp_path / out), "--workers", workers]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()
    }


def test_an_unreadable_file_is_left_out_and_listed(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == 0
    before = read(out)
    broken = first_file(out, "train")
    broken.write_bytes(b"broken" * 50)
    assert main([*command, "--out", str(out)]) == 0
    name, reason = (out / "unreadable.tsv").read_text().rstrip("\n").split("\t")
    assert str(broken).endswith(name) and reason
    assert f"unreadable: 1, listed with reasons in {out / 'unreadable.tsv'}" in capsys.readouterr().out
    after = read(out)
    assert after.keys() == before.keys()
    assert not any(name == clip for clips in after.values() for clip, _ in clips)
    for split in before:
        assert {clip: labels for clip, labels in before[split] if clip != name}.items() >= dict(after[split]).items()


@pytest.mark.parametrize("command", LISTED, indirect=True)
def test_a_byte_order_mark_before_any_list_changes_nothing(command, tmp_path):
    assert main([*command, "--out", str(tmp_path / "before")]) == 0
    lists = [path for path in (tmp_path / "corpus").rglob("*") if path.suffix in (".txt", ".csv", ".tsv")]
    assert lists
    for path in lists:
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert main([*command, "--out", str(tmp_path / "after")]) == 0
    assert read(tmp_path / "after") == read(tmp_path / "before")


@pytest.mark.parametrize("command", [iemocap, speech_commands], indirect=True)
def test_what_is_drawn_is_drawn_from_clips_that_can_be_read(command, tmp_path):
    assert main([*command, "--out", str(tmp_path / "before")]) == 0
    before = read(tmp_path / "before")
    drawn = [name for name, labels in before["valid"] if labels[0] in ("_unknown_", "ang", "hap", "neu")]
    for name in drawn:
        (tmp_path / "corpus" / name).write_bytes(b"broken" * 50)
    assert main([*command, "--out", str(tmp_path / "after")]) == 0
    after = read(tmp_path / "after")
    assert after["valid"] and not {name for name, _ in after["valid"]} & set(drawn)


@pytest.mark.parametrize("command", LISTED, indirect=True)
def test_a_listed_file_that_is_missing(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == 0
    clips = sum(map(len, read(out).values()))
    first_file(out, "valid").unlink()
    other = tmp_path / "other"
    assert main([*command, "--out", str(other)]) == 2
    error = capsys.readouterr().err
    assert "1 of " in error and "--allow-missing" in error
    assert not other.exists()
    assert main([*command, "--out", str(other), "--allow-missing"]) == 0
    assert "left out" in capsys.readouterr().err
    assert sum(map(len, read(other).values())) < clips


def test_what_cannot_be_read_or_written_is_a_message(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*command, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write the manifests there" in capsys.readouterr().err
    out = tmp_path / "out"
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    assert main([*command, "--out", str(out)]) == 2
    assert str(tmp_path / "corpus") in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(out), "--workers", "-1"])
    assert stop.value.code == 2
    assert "must be 0 or more" in capsys.readouterr().err
