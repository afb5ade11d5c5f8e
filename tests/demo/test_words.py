import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from amae_plugin.demo.espeak import Espeak
from amae_plugin.demo.words import CLIP_SAMPLES, SAMPLE_RATE, SPEAKERS, WORDS, Speaker, make_words
from amae_plugin.errors import UserError

FEW_WORDS = ("cat", "seven", "stop")
# Two of each split, one of them with a breathy voice (f2, f3), whose noise eSpeak seeds by the clock if left to itself.
FEW_SPEAKERS = tuple(
    next(speaker for speaker in SPEAKERS if speaker.split == split and speaker.voice.endswith(timbre))
    for split, timbres in (("train", ("m1", "f2")), ("valid", ("m2", "f1")), ("test", ("m3", "f3")))
    for timbre in timbres
)


def few_words(root: Path, clips_per_word: int = 8, seed: int = 0, workers: int = 2) -> Path:
    return make_words(root, clips_per_word, seed, workers, words=FEW_WORDS, speakers=FEW_SPEAKERS)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_words(tmp_path_factory.mktemp("words") / "corpus")


def clips(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("[!_]*/*.wav"))


def test_layout_is_that_of_speech_commands(corpus: Path) -> None:
    assert {path.name for path in corpus.iterdir()} == {
        *FEW_WORDS,
        "_background_noise_",
        "validation_list.txt",
        "testing_list.txt",
        "words.json",
    }
    for word in FEW_WORDS:
        names = [path.name for path in (corpus / word).iterdir()]
        assert len(names) == 8
        for name in names:
            speaker, number = name.split("_nohash_")
            assert len(speaker) == 8 and int(speaker, 16) >= 0
            assert number in ("0.wav", "1.wav")
    assert [path.name for path in corpus.parent.iterdir()] == ["corpus"], "something is left beside the corpus"


def test_every_clip_is_up_to_a_second_of_speech(corpus: Path) -> None:
    lengths = set()
    for path in clips(corpus):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
        samples, _ = soundfile.read(path)
        lengths.add(len(samples))
        assert 0.2 * SAMPLE_RATE < len(samples) <= CLIP_SAMPLES
        assert 0.1 < np.abs(samples).max() < 1
        # Speech has loud and quiet stretches; noise and hum have not.
        level = np.sqrt(np.mean(samples[: len(samples) // 400 * 400].reshape(-1, 400) ** 2, axis=1))
        assert level.max() > 5 * np.median(level) or level.max() > 10 * level.min()
    assert max(lengths) == CLIP_SAMPLES


def test_clips_of_a_word_differ(corpus: Path) -> None:
    assert len({path.read_bytes() for path in clips(corpus)}) == len(clips(corpus))


def test_splits_have_different_speakers(corpus: Path) -> None:
    listed = {name: (corpus / name).read_text().split() for name in ("validation_list.txt", "testing_list.txt")}
    every = {path.relative_to(corpus).as_posix() for path in clips(corpus)}
    valid, test = map(set, listed.values())
    assert valid and test and valid | test < every
    speakers = [{Path(path).name[:8] for path in split} for split in (valid, test, every - valid - test)]
    assert len(set.union(*speakers)) == sum(map(len, speakers)) == len(FEW_SPEAKERS)


def test_speakers_are_many_and_distinct() -> None:
    assert len(WORDS) == 35
    assert len({speaker.hash for speaker in SPEAKERS}) == len({speaker[:2] for speaker in SPEAKERS}) >= 50
    voices = {
        split: {speaker.voice for speaker in SPEAKERS if speaker.split == split} for split in ("train", "valid", "test")
    }
    assert not voices["train"] & voices["valid"] and not (voices["train"] | voices["valid"]) & voices["test"]


def test_background_noise_is_long_and_not_silent(corpus: Path) -> None:
    noises = list((corpus / "_background_noise_").iterdir())
    assert len(noises) >= 3
    for path in noises:
        samples, rate = soundfile.read(path)
        assert rate == SAMPLE_RATE and 10 <= len(samples) / rate <= 60
        assert np.std(samples) > 0.01


def test_same_seed_gives_the_same_bytes_whatever_the_workers(corpus: Path, tmp_path: Path) -> None:
    assert contents(few_words(tmp_path / "again", workers=1)) == contents(corpus)


def test_other_seed_gives_other_clips(corpus: Path, tmp_path: Path) -> None:
    other = few_words(tmp_path / "other", seed=1)
    assert all(path.read_bytes() != (other / path.relative_to(corpus)).read_bytes() for path in clips(corpus))


def test_a_made_corpus_is_reused(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert few_words(corpus) == corpus
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_other_settings_for_a_made_corpus_are_an_error_that_names_them(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"corpus.*clips_per_word, seed.*delete"):
        few_words(corpus, clips_per_word=2, seed=5)


@pytest.mark.parametrize("marker", [None, "not json", json.dumps(["not", "settings"])])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, marker: "str | None") -> None:
    (tmp_path / "mine.txt").write_text("mine")
    if marker is not None:
        (tmp_path / "words.json").write_text(marker)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="is not a corpus"):
        few_words(tmp_path)
    assert contents(tmp_path) == before


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="xx-nowhere"):
        make_words(tmp_path / "corpus", 1, workers=1, words=("cat",), speakers=(Speaker("xx-nowhere", 50, "train"),))
    assert not any(tmp_path.iterdir())


def test_missing_espeak_is_one_sentence_with_the_mending(tmp_path: Path) -> None:
    # A module of that name that cannot be imported, found before the installed one also by the worker processes.
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "espeakng_loader.py").write_text("raise ImportError")
    code = f"""
from amae_plugin.demo.words import make_words
from amae_plugin.errors import UserError
try:
    make_words({str(tmp_path / "corpus")!r}, 1, workers=1)
except UserError as error:
    print(error)
"""
    path = os.pathsep.join(filter(None, [str(shadow), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert "pip install espeakng-loader" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["shadow"]


def test_espeak_speaks_from_data_under_a_long_path(tmp_path: Path) -> None:
    import espeakng_loader

    folder = tmp_path / ("x" * 180)
    folder.mkdir()
    (folder / "espeakng_loader").symlink_to(Path(espeakng_loader.__file__).parent, target_is_directory=True)
    code = """
from amae_plugin.demo.espeak import Espeak
with Espeak() as espeak:
    espeak.set_voice("en-us+f3")
    print(espeak.say("cat").std())
"""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) > 0.01


def test_rate_pitch_and_voice_change_the_speech() -> None:
    with Espeak() as espeak:
        espeak.set_voice("en-us")
        plain = espeak.say("seven")
        fast = espeak.say("seven", rate=300)
        high = espeak.say("seven", pitch=95)
        espeak.set_voice("en-us+f3")
        other = espeak.say("seven")
        with pytest.raises(UserError, match="xx-nowhere"):
            espeak.set_voice("xx-nowhere")
    assert espeak.sample_rate == 22050 and plain.dtype == np.float32
    assert 0.3 < len(plain) / espeak.sample_rate < 0.7
    assert len(fast) < 0.8 * len(plain)

    def pitch_hz(samples: np.ndarray) -> float:
        vowel = samples[2500:5500]
        likeness = np.correlate(vowel, vowel, "full")[len(vowel) :]
        shortest, longest = espeak.sample_rate // 300, espeak.sample_rate // 60
        return espeak.sample_rate / (np.argmax(likeness[shortest:longest]) + shortest + 1)

    assert pitch_hz(high) > 1.2 * pitch_hz(plain)
    assert not np.array_equal(other[:5000], plain[:5000])
