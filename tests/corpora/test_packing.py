"""Packed clips are those that were packed, with all that belongs to them, also where packing was interrupted."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from amae_plugin.cli.main import main
from amae_plugin.corpora.packing import Packing, find_manifests, pack
from amae_plugin.data.audio import load_clip, read_rate
from amae_plugin.data.augment import Magnitude, Roll
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.labels import Labels, write_labels, write_names
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.data.sampling import read_weights
from amae_plugin.data.transcripts import read_transcripts
from amae_plugin.errors import UserError


def noise(number: int, samples: int = 4_000, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(number).uniform(-1, 1, (samples, channels))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six clips of all kinds, with labels, transcripts and weights: clip i has the class i % 2."""
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "0.wav", noise(0), 16_000)
    soundfile.write(folder / "1.flac", noise(1), 44_100)
    soundfile.write(folder / "2.wav", noise(2), 8_000, subtype="PCM_24")
    soundfile.write(folder / "3.wav", noise(3, channels=2), 16_000)  # whose mean has 17 bits
    soundfile.write(folder / "4.wav", noise(4, 9_000), 22_050)
    with zipfile.ZipFile(folder / "5.zip", "w") as archive:
        archive.write(folder / "0.wav", "a.wav")
    start = (folder / "5.zip").read_bytes().index(b"RIFF")
    names = ["0.wav", "1.flac", "2.wav", "3.wav", "4.wav:1000:4000"]
    member = f"5.zip:{start}:{(folder / '0.wav').stat().st_size}"
    write_manifest(folder / "train.tsv", folder, [(name, 4_000) for name in (*names, member)])
    write_names(folder / "labels.txt", ["even", "odd"])
    write_labels(folder / "train.lbl", [[("even", "odd")[number % 2]] for number in range(6)])
    (folder / "train.ltr").write_text("".join(f"{number} |\n" for number in range(6)))
    (folder / "dict.ltr.txt").write_text("| 6\n")
    np.save(folder / "train.weights.npy", np.arange(1, 7, dtype=np.float32))
    return folder


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_a_model_hears_the_same_where_nothing_is_resampled(folder: Path, tmp_path: Path, kind: str) -> None:
    assert main(["pack", str(folder), "--out", str(tmp_path / "out"), "--format", kind, "--workers", "1"]) == 0
    (tmp_path / "out").rename(tmp_path / "moved")
    before, after = (Manifest.read(place / "train.tsv") for place in (folder, tmp_path / "moved"))
    assert after.sizes.tolist() == before.sizes.tolist()
    assert {after[index].kind for index in range(6)} == {"tar"}
    settings = {"augmentations": (Roll(), Magnitude()), "train": True}
    one, other = (AudioDataset(manifest, ModelInput(target_length=16), **settings) for manifest in (before, after))
    for index in range(6):
        assert read_rate(after[index]) == read_rate(before[index])
        assert torch.equal(one[index]["source"], other[index]["source"])
    copied = ("train.lbl", "train.ltr", "train.weights.npy", "labels.txt", "dict.ltr.txt")
    assert all((tmp_path / "moved" / name).read_bytes() == (folder / name).read_bytes() for name in copied)
    with tarfile.open(tmp_path / "moved" / "train-000000.tar") as archive:
        assert [member.name for member in archive] == [f"{number:09d}.{kind}" for number in range(6)]


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_what_is_resampled_is_rounded_to_16_bits(folder: Path, tmp_path: Path, kind: str) -> None:
    packed = pack(folder / "train.tsv", tmp_path / "out", Packing(kind, 16_000))
    before, after = (Manifest.read(place / "train.tsv") for place in (folder, tmp_path / "out"))
    assert (packed.clips, packed.clipped > 0) == (6, kind == "flac")  # noise of full scale, resampled, exceeds it
    assert after.sizes.tolist() == [len(load_clip(before[index])) for index in range(6)]
    for index in range(6):
        expected = load_clip(before[index])
        assert read_rate(after[index]) == 16_000
        within = expected.clamp(-1, 1 - 2**-15) if kind == "flac" else expected
        assert (load_clip(after[index]) - within).abs().max() <= (0 if index == 3 else 2**-16)


def test_clips_that_cannot_be_decoded_are_left_out_with_their_lines(folder: Path, tmp_path: Path) -> None:
    (folder / "1.flac").write_bytes(b"broken" * 50)
    (folder / "4.wav").unlink()
    assert main(["pack", str(folder / "train.tsv"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    out = tmp_path / "out"
    manifest = Manifest.read(out / "train.tsv")
    labels = Labels.read(out / "train.lbl", out / "labels.txt", len(manifest))
    assert labels.ids.tolist() == [0, 0, 1, 1]
    assert (out / "train.ltr").read_text() == "0 |\n2 |\n3 |\n5 |\n"
    assert read_weights(out / "train.weights.npy", 4).tolist() == [1, 3, 4, 6]
    report = (out / "unreadable.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in report] == ["1.flac", "4.wav:1000:4000"]
    for name in ("0.wav", "2.wav", "3.wav", "5.zip"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"none of its clips can be decoded; see .*unreadable\.tsv"):
        pack(folder / "train.tsv", tmp_path / "other", Packing())


@pytest.mark.parametrize(("line_end", "behind"), [("\n", ""), ("\r\n", "\n\n \n"), ("\r", "\n")])
@pytest.mark.parametrize("broken", [False, True])
def test_transcripts_are_counted_as_they_are_read(
    folder: Path, tmp_path: Path, line_end: str, behind: str, broken: bool
) -> None:
    text = "0 |\n\n2 |\n3 |\n4 |\n\n"  # where nothing is said in the second clip and the last
    (folder / "train.ltr").write_bytes((text + behind).replace("\n", line_end).encode())
    if broken:
        (folder / "2.wav").write_bytes(b"broken" * 50)
    assert not pack(folder / "train.tsv", tmp_path / "out", Packing()).warnings
    lines = ["0 |", "", "2 |", "3 |", "4 |", ""]
    if broken:
        del lines[2]
    assert read_transcripts(tmp_path / "out" / "train.ltr", len(lines)) == lines


def test_a_file_without_one_line_a_clip_is_not_copied(folder: Path, tmp_path: Path) -> None:
    (folder / "train.ltr").write_text("0 |\n1 |\n2 |\n3 |\n4 |\n")
    warnings = pack(folder / "train.tsv", tmp_path / "out", Packing()).warnings
    assert warnings == ["train.ltr: not copied, as it has not one entry a clip"]


def test_clips_that_were_left_out_are_tried_again_as_the_message_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "1.flac").write_bytes(b"broken" * 50)
    (folder / "4.wav").rename(folder / "away.wav")
    out = tmp_path / "out"
    command = ["pack", str(folder), "--out", str(out), "--workers", "1"]
    assert main(command) == 1
    (folder / "away.wav").rename(folder / "4.wav")
    assert main(command) == 1
    message = f"to try them again, delete {out / 'train.tsv'} and {out / 'unreadable.tsv'}, and pack again\n"
    assert capsys.readouterr().err.count(message) == 2
    (out / "train.tsv").unlink()
    (out / "unreadable.tsv").unlink()
    assert main(command) == 1
    assert (out / "unreadable.tsv").read_text().startswith("1.flac\t")
    again = files(out)
    assert main([*command[:3], str(tmp_path / "other"), *command[4:]]) == 1
    assert again == files(tmp_path / "other")


def test_what_lies_beside_the_manifest_is_copied_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, record = tmp_path / "out", tmp_path / "out" / "train.pack.json"
    (folder / "1.flac").write_bytes(b"broken" * 50)
    (folder / "train.ltr").rename(folder / "kept")
    command = ["pack", str(folder), "--out", str(out), "--rate", "16000", "--workers", "1"]
    assert main(command) == 1
    packed, told = files(out), capsys.readouterr()
    assert main(command) == 1
    assert files(out) == packed
    again = capsys.readouterr()
    assert again.out == told.out.replace(" bytes", " bytes, packed before")
    assert told.err.endswith(again.err) and "cut off at full scale: " in again.err and "\n  1.flac: " in again.err
    write_labels(folder / "train.lbl", [[("odd", "even")[number % 2]] for number in range(6)])
    np.save(folder / "train.weights.npy", np.arange(11, 17, dtype=np.float32))
    (folder / "kept").rename(folder / "train.ltr")
    kept = {name: value for name, value in json.loads(record.read_text()).items() if name not in ("left", "clipped")}
    for content in (record.read_text(), json.dumps(kept)):  # without them, the list of all splits tells
        record.write_text(content)
        (out / "train.lbl").unlink()
        assert main(command) == 1
        assert (out / "train.lbl").read_text() == "odd\nodd\neven\nodd\neven\n"
        assert (out / "train.ltr").read_text() == "0 |\n2 |\n3 |\n4 |\n5 |\n"
        assert read_weights(out / "train.weights.npy", 5).tolist() == [11, 13, 14, 15, 16]
        assert "\n  1.flac: " in capsys.readouterr().err
    (out / "unreadable.tsv").unlink()
    assert main(command) == 2
    assert "train.pack.json: does not tell what was left out; delete it" in capsys.readouterr().err
    record.write_bytes(packed[record.name])
    (folder / "train.ltr").unlink()
    assert main(command) == 1
    assert files(out)["unreadable.tsv"] == packed["unreadable.tsv"]
    assert "train.ltr: left there, as " in capsys.readouterr().err


def test_trials_name_the_clips_of_the_shards(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", noise(number), 16_000)
    (folder / "1.wav").write_bytes(b"broken" * 50)
    write_manifest(folder / "trials.tsv", folder, [(f"{number}.wav", 4_000) for number in range(3)])
    for lines in ("1 0.wav 2.wav\n0 0.wav 1.wav\n0 2.wav 0.wav\n", "1 2.wav 0.wav\n0 0.wav 2.wav\n"):
        (folder / "trials.txt").write_text(lines)
        pack(folder / "trials.tsv", out, Packing())
        first, second = (Manifest.read(out / "trials.tsv").name(index) for index in range(2))
        pairs = lines.replace("0 0.wav 1.wav\n", "").replace("0.wav", first).replace("2.wav", second)
        assert (out / "trials.txt").read_text() == pairs


def test_splits_whose_names_begin_alike_are_packed_side_by_side(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    counts = {"train-clean": 2, "train.clean": 2, "train": 3}  # a manifest of 2 clips has a line for each clip of train
    for split, count in counts.items():
        write_manifest(folder / f"{split}.tsv", folder, [(f"{number}.wav", 4_000) for number in range(count)])
        (folder / f"{split}.ltr").write_text(f"{split} |\n" * count)
    for number in (1, 2):  # 0 is missing
        soundfile.write(folder / f"{number}.wav", noise(number), 16_000)
    for done in (False, True):
        for manifest, (split, count) in zip(find_manifests(folder), counts.items()):
            packed = pack(manifest, out, Packing())
            assert (packed.manifest, packed.clips, packed.shards) == (out / f"{split}.tsv", count - 1, 1)
            assert (packed.warnings, packed.done_before) == ([], done)
    for split, count in counts.items():
        assert Manifest.read(out / f"{split}.tsv").name(0).startswith(f"{split}-000000.tar:")
        assert (out / f"{split}.ltr").read_text() == f"{split} |\n" * (count - 1)


PACK = "import sys; from amae_plugin.cli.main import main; sys.exit(main(sys.argv[1:]))"


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_packing_is_continued_to_the_same_bytes(tmp_path: Path, number: signal.Signals) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for index in range(60):
        soundfile.write(folder / f"{index}.wav", noise(index, 40_000), 16_000)
    write_manifest(folder / "train.tsv", folder, [(f"{index}.wav", 40_000) for index in range(60)])
    command = ["pack", str(folder / "train.tsv"), "--out", str(out), "--rate", "8000", "--workers", "1"]
    small = f"from amae_plugin.cli import pack; pack._MEGABYTE = 50_000; {PACK}"
    process = subprocess.Popen([sys.executable, "-c", small, *command, "--shard-size", "2"], stderr=subprocess.DEVNULL)
    while not (out / "train-000001.tar").exists():
        assert process.poll() is None
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(number)
    assert process.wait(60) == {signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    deadline = time.monotonic() + 30
    while any(map(is_running, children)):
        assert time.monotonic() < deadline, "a worker goes on"
        time.sleep(0.01)
    assert not (out / "train.tsv").exists()
    first = (out / "train-000000.tar").stat()
    settings = Packing("flac", 8_000, 100_000)
    assert pack(folder / "train.tsv", out, settings).clips == 60
    assert (out / "train-000000.tar").stat().st_ino == first.st_ino
    pack(folder / "train.tsv", tmp_path / "whole", settings, workers=2)
    assert files(out) == files(tmp_path / "whole")
    assert len(list(out.glob("train-*.tar"))) > 5
    assert pack(folder / "train.tsv", out, settings).done_before


def refused(folder: Path, out: Path, settings: Packing | None = None) -> str:
    with pytest.raises(UserError) as error:
        pack(folder / "train.tsv", out, settings or Packing())
    return str(error.value)


def test_pictures_are_not_lost(tmp_path: Path) -> None:
    write_manifest(tmp_path / "train.tsv", ".", [("a.wav", 16_000, "a.png")])
    with pytest.raises(UserError, match=r"train\.tsv: its clips have pictures"):
        pack(tmp_path / "train.tsv", tmp_path / "out", Packing("flac", None, 1_000_000))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_files_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "its own would replace" in refused(folder, folder)
    assert "--rate 99: must be 100 to 1,000,000 Hz" in refused(folder, out, Packing(rate=99))
    assert "at 900,000 Hz" in refused(folder, tmp_path / "flac", Packing(rate=900_000))
    out.mkdir()
    (out / "train-000000.tar").touch()
    assert "that this command did not write" in refused(folder, out)
    (out / "train-000000.tar").unlink()
    (out / "labels.txt").write_text("others\n")
    assert "labels.txt: another than" in refused(folder, out)
    (out / "labels.txt").unlink()
    pack(folder / "train.tsv", out, Packing())
    assert "packed with rate None, not 8000" in refused(folder, out, Packing(rate=8_000))
    (out / "train.pack.json").write_text("[]")
    assert "not a record of amae pack" in refused(folder, out)


def test_what_was_written_is_compared_with_what_was_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = soundfile.write

    def write_wrongly(file: object, samples: np.ndarray, *arguments: object, **options: object) -> None:
        write(file, samples // 2, *arguments, **options)

    monkeypatch.setattr(soundfile, "write", write_wrongly)
    assert "0.wav: the flac that was written of it does not give its samples" in refused(folder, tmp_path / "a")
    monkeypatch.setattr(soundfile, "write", write)
    add = tarfile.TarFile.addfile

    def add_zeros(archive: tarfile.TarFile, member: tarfile.TarInfo, file: object) -> None:
        add(archive, member, io.BytesIO(bytes(member.size)))

    monkeypatch.setattr(tarfile.TarFile, "addfile", add_zeros)
    assert "the disk gives back other bytes" in refused(folder, tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.tar"))
