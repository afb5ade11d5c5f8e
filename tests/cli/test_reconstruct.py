from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from amae_plugin.cli.main import main
from amae_plugin.data.manifest import Manifest, write_manifest
from amae_plugin.inference.clips import Excerpt, load_excerpt, load_waveform
from amae_plugin.visual.page import ClipView, Page

CLIPS = [((), 0.4, 16_000), ((), 1.7, 44_100)]  # the model's input is 0.64 s


@pytest.fixture(scope="module")
def checkpoint(write_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.pt", None)


@pytest.fixture
def clips(write_split: Callable[..., Path], tmp_path: Path) -> Path:
    return write_split(tmp_path / "clips", CLIPS)


def test_a_page_and_a_picture_and_three_sounds_a_clip(
    checkpoint: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["reconstruct", str(checkpoint), str(clips), "--out", str(out), "--workers", "0"]) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = ("masked.wav", "original.wav", "picture.png", "reconstructed.wav")
    assert written == [f"{index}.flac/{name}" for index in (0, 1) for name in names] + ["clips.json", "index.html"]
    for index, (_, seconds, _) in enumerate(CLIPS):
        sounds = []
        for name in ("original", "masked", "reconstructed"):
            path = out / f"{index}.flac" / f"{name}.wav"
            header = soundfile.info(path)
            assert (header.format, header.subtype, header.samplerate, header.channels) == ("WAV", "PCM_16", 16_000, 1)
            assert header.frames == round(seconds * 16_000)
            sounds.append(soundfile.read(path)[0])
        assert max(np.abs(sound).max() for sound in sounds) == pytest.approx(0.9, abs=1e-3)
        assert all(np.abs(one - other).max() > 0.01 for one, other in zip(sounds, [*sounds[1:], sounds[0]]))
    captured = capsys.readouterr()
    assert "error of the hidden part: " in captured.out and f"{out / 'index.html'}: 2 clips, " in captured.out
    assert captured.err == ""  # which is no terminal, so no bar
    listed = json.loads((out / "clips.json").read_text())
    assert [(clip["clip"], clip["seconds"]) for clip in listed] == [("0.flac", 0.4), ("1.flac", pytest.approx(1.7))]
    assert all(0 < clip["hidden"] < 1 and clip["error_db"] > 0 < clip["straight_lines_db"] for clip in listed)


def test_a_page_that_is_stopped_shows_what_it_has(
    checkpoint: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["reconstruct", str(checkpoint), str(clips), "--out", str(out), "--workers", "0"]
    article = Page.add

    def stop_at_the_second(page: Page, clip: ClipView) -> None:
        if len(page) == 1:
            raise KeyboardInterrupt
        article(page, clip)

    with monkeypatch.context() as patch:
        patch.setattr(Page, "add", stop_at_the_second)
        assert main(arguments) == 130
    page = (out / "index.html").read_text()
    assert "Unfinished: 1 of 2 clips" in page and page.endswith("</html>\n") and page.count("<article") == 1
    assert main(arguments) == 0
    page = (out / "index.html").read_text()
    assert "Unfinished" not in page and page.endswith("</html>\n") and page.count("<article") == 3


def test_a_page_that_has_no_room_for_a_clip_keeps_the_others(
    checkpoint: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, add, (soft, hard) = tmp_path / "out", Page.add, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(page: Page, clip: ClipView) -> None:
        if len(page) == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (page.path.stat().st_size + 10_000, hard))
        try:
            add(page, clip)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(Page, "add", limited)
    assert main(["reconstruct", str(checkpoint), str(clips), "--out", str(out), "--workers", "0"]) == 2
    page = (out / "index.html").read_text()
    assert "Unfinished: 1 of 2 clips" in page and page.endswith("</html>\n") and page.count("<article") == 1
    assert "index.html: cannot write there (File too large)" in capsys.readouterr().err


def test_another_run_removes_what_an_earlier_one_made_and_nothing_else(
    checkpoint: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, files = tmp_path / "out", ("masked.wav", "original.wav", "picture.png", "reconstructed.wav")
    (clips / "deep" / "er").mkdir(parents=True)
    (clips / "0.flac").rename(clips / "deep" / "er" / "0.flac")
    run = ["reconstruct", str(checkpoint), "--out", str(out), "--workers", "0"]
    assert main([*run, str(clips), "--format", "pdf", "svg", "--width", "column"]) == 0
    assert 'width="244.8pt"' in (out / "1.flac" / "picture.svg").read_text()  # 3.4 inches
    assert (out / "1.flac" / "picture.pdf").exists() and not (out / "1.flac" / "picture.png").exists()
    # Of the user: a folder that looks like those of the command, one beside it, and a file in one of them.
    for kept in (out / "mine", tmp_path / "beside"):
        kept.mkdir()
        (kept / "original.wav").write_bytes(b"mine")
    (out / "1.flac" / "notes.txt").write_text("mine")
    listed = [*json.loads((out / "clips.json").read_text()), {"clip": "../beside"}]
    (out / "clips.json").write_text(json.dumps(listed))
    assert main([*run, str(clips / "missing.wav")]) == 2  # and touches nothing
    assert (out / "1.flac" / "original.wav").exists() and (out / "deep" / "er" / "0.flac" / "original.wav").exists()
    assert main([*run, str(clips / "deep" / "er" / "0.flac")]) == 0
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    made = {f"0.flac/{name}" for name in files} | {"clips.json", "index.html"}
    assert left == made | {"1.flac/notes.txt", "mine/original.wav"}
    assert not (out / "deep").exists() and (tmp_path / "beside" / "original.wav").exists()
    capsys.readouterr()
    for content in ("{", "[1]", '{"a": 1}'):
        (out / "clips.json").write_text(content)
        assert main([*run, str(clips / "1.flac")]) == 2
        assert "clips.json: not written by this command; give another --out" in capsys.readouterr().err
        assert (out / "0.flac" / "original.wav").exists()


def test_masks_are_chosen_by_name_and_said_on_the_page(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    pages = []
    for options in (["--strategy", "time", "--mask-ratio", "0.25"], ["--seed", "7"], ["--seed", "7"], ["--seed", "8"]):
        arguments = ["reconstruct", str(checkpoint), str(clips / "0.flac"), "--out", str(tmp_path / "out"), *options]
        assert main(arguments) == 0
        pages.append((tmp_path / "out" / "index.html").read_text())
    assert "time, 25%, seed 1" in pages[0] and "random, 80%, seed 7" in pages[1]
    assert pages[1] == pages[2]
    assert pages[1] != pages[3].replace("seed 8", "seed 7")


def test_a_piece_of_a_long_recording_is_shown_and_said(
    checkpoint: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "out", ("--start", "0.25", "--seconds", "1")
    assert main(["reconstruct", str(checkpoint), str(clips), "--out", str(out), *options, "--workers", "0"]) == 0
    frames = [soundfile.info(out / f"{index}.flac" / "original.wav").frames for index in (0, 1)]
    assert frames == [round(0.15 * 16_000), 16_000]
    errors = capsys.readouterr().err
    assert f"{clips / '0.flac'}: shown from 0.25 to 0.4 of 0.4 s (--start, --seconds)\n" in errors
    assert f"{clips / '1.flac'}: shown from 0.25 to 1.25 of 1.7 s (--start, --seconds)\n" in errors
    # The piece is that of the file, and nothing else of the file is decoded.
    excerpt, whole = load_excerpt(clips / "1.flac", Excerpt(0.25, 1)), load_waveform(clips / "1.flac")
    assert excerpt.seconds == pytest.approx(1.7)
    np.testing.assert_allclose(excerpt.waveform[20:-20], whole[4000:20_000][20:-20], atol=1e-5)
    assert main(["reconstruct", str(checkpoint), str(clips), "--out", str(out), "--workers", "0"]) == 0
    assert "shown from" not in capsys.readouterr().err


def test_clips_of_a_manifest_may_be_pieces_of_files_and_members_of_archives(
    checkpoint: Path, clips: Path, tmp_path: Path
) -> None:
    assert main(["pack", str(clips), "--out", str(tmp_path / "packed"), "--workers", "0"]) == 0
    write_manifest(tmp_path / "cut.tsv", clips, [("1.flac:22050:44100", 44_100)])
    packed = Manifest.read(tmp_path / "packed" / "test.tsv")

    def original(path: Path, name: str, start: float) -> np.ndarray:
        out, options = tmp_path / "out" / name, ("--start", str(start), "--seconds", "0.5", "--workers", "0")
        assert main(["reconstruct", str(checkpoint), str(path), "--out", str(out), *options]) == 0
        return soundfile.read(out / name / "original.wav")[0]

    cut = original(tmp_path / "cut.tsv", "1.flac:22050:44100", 0.25)
    np.testing.assert_array_equal(cut, original(clips / "1.flac", "1.flac", 0.75))
    member = original(packed.path, Path(packed.name(1)).name, 0.25)
    np.testing.assert_allclose(member, original(clips / "1.flac", "1.flac", 0.25), atol=0.05)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_page_says_where_the_level_comes_from(
    normalized: bool, write_checkpoint: Callable[..., Path], clips: Path, tmp_path: Path
) -> None:
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1}
    encoder = {"_name": "amae_audio_mae", "input_length": 64, "num_mel_bins": 64, "decoder_num_heads": 2, **sizes}
    checkpoint = write_checkpoint(tmp_path / "model.pt", None, encoder={**encoder, "norm_pix_loss": normalized})
    assert main(["reconstruct", str(checkpoint), str(clips / "0.flac"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert ("level and spread come from visible ones" in page) == normalized


def test_a_folder_with_a_bad_file(
    checkpoint: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "bad.wav").write_text("not audio")
    soundfile.write(clips / "silent.wav", np.zeros(16_000), 16_000)
    assert main(["reconstruct", str(checkpoint), str(clips), "--out", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert "left out, as they cannot be used: 2" in errors
    assert f"{clips / 'silent.wav'}: is silent" in errors and f"{clips / 'bad.wav'}: " in errors
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<article") == 3 and "silent.wav" not in page  # two clips, and both together


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{classifier}", "{clip}"], "a classifier, so it has no decoder to reconstruct with"),
        (["{m2d}", "{clip}"], "trained without reconstruction (its objectives: cosine)"),
        (["{slaney}", "{clip}"], "its front end 'slaney' has no inverse here"),
        (["{clip}", "{clip}"], "not a checkpoint"),
        (["{checkpoint}", "nowhere.wav"], "cannot use nowhere.wav: No such file"),
        (["{checkpoint}", "{checkpoint}"], "model.pt: not a format"),
        (["{checkpoint}", "{clip}", "--mask-ratio", "1.5"], "--mask-ratio 1.5: the hidden share must be above 0"),
        (["{checkpoint}", "{clip}", "--strategy", "all"], "--strategy all: no masking strategy is called 'all'"),
        (["{checkpoint}", "{clip}", "--seconds", "601"], "--seconds 601: a page holds at most 600 s of a recording"),
        (["{checkpoint}", "{clip}", "--start", "1"], "lasts 0.4 s, so nothing of it comes after --start 1"),
        (["{checkpoint}", "{clip}", "--out", "{checkpoint}"], "model.pt: cannot write there (File exists)"),
        (["{checkpoint}", "{clip}", "--out", "{folder}"], "lies in --out"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    clips: Path,
    write_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"checkpoint": checkpoint, "clip": clips / "0.flac", "folder": clips}
    names["classifier"] = write_checkpoint(tmp_path / "classifier.pt", ["a", "b"])
    sizes = {"input_length": 64, "num_mel_bins": 64, "embed_dim": 32, "depth": 1, "decoder_depth": 1}
    heads = {"num_heads": 2, "decoder_embed_dim": 16, "decoder_num_heads": 2}
    names["m2d"] = write_checkpoint(tmp_path / "m2d.pt", None, encoder={"_name": "amae_m2d", **sizes, **heads})
    content = torch.load(checkpoint)
    content["cfg"]["task"]["front_end"] = "slaney"
    torch.save(content, tmp_path / "slaney.pt")
    names["slaney"] = tmp_path / "slaney.pt"
    arguments = [argument.format(**names) for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    assert main(["reconstruct", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "index.html").exists()
