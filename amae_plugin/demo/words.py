"""The demo's corpus: the 35 words of Speech Commands, spoken by eSpeak NG and laid out as its publisher lays it out.

Seventy-two voices, each an accent, a timbre and a pitch, stand in for the speakers. Validation and test split have
voices that training never hears, though it does hear their timbres with other accents. A synthesiser says a word almost
the same way each time, so every clip gets its own speaking rate, pitch, place in the clip, noise and level, and every
speaker a microphone and a room.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import wave
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from amae_plugin.corpora.speech_commands import WORDS
from amae_plugin.demo.espeak import Espeak
from amae_plugin.errors import UserError
from amae_plugin.runs.training import available_cpus

SAMPLE_RATE = 16000
CLIP_SAMPLES = 16000
"""The longest clip: 1 s, as in Speech Commands."""

# A voice is an accent, a timbre and a pitch: these, eSpeak's names for its English accents and for its variants of them
# that sound like people and of which none is a near copy of another.
_ACCENTS = ("en-us", "en", "en-gb-x-rp")
_TIMBRES = ("m1", "f1", "m2", "f2", "m3", "f3", "m4", "f4", "m5", "f5", "m7", "steph")
_PITCHES = (42, 58)

# Raised when the same parameters make other clips than before, so that an older folder is not taken for a new one.
_RECIPE = 1
_MARKER = "words.json"
_NOISE_SECONDS = 30
# Spectral slope of the noise, in powers of 1/f.
_NOISES = {"white_noise": 0.0, "pink_noise": 1.0, "brown_noise": 2.0}
_HUM_HZ = 50

# Least and most of what varies, drawn uniformly: of a speaker...
_SPEAKER_HABITS = ((155, 42), (195, 58))  # words per minute, pitch range
_MICROPHONE_DB = 0.5  # at each of four frequencies, either way
_ROOM_DB = (-34, -24)  # energy of the reverberation against the direct sound
# ... and of a clip.
_RATE_FACTOR = (0.95, 1.05)
_PITCH_SHIFT = (-3, 3)
_RANGE_SHIFT = (-8, 8)
_SNR_DB = (35, 55)
_PEAK_DB = (-9, -1)


class Speaker(NamedTuple):
    """A voice of eSpeak NG."""

    voice: str
    """Accent and timbre, for `Espeak.set_voice`."""
    pitch: int
    """About which this speaker speaks, for `Espeak.say`."""
    split: str
    """``train``, ``valid`` or ``test``."""

    @property
    def hash(self) -> str:
        """The eight hexadecimal digits that Speech Commands names a speaker by."""
        return hashlib.sha1(f"{self.voice} {self.pitch}".encode()).hexdigest()[:8]


def _all_speakers() -> tuple[Speaker, ...]:
    """One accent of each timbre is held out, at both pitches: by turns for validation and for testing."""
    speakers = []
    for pitch in _PITCHES:
        for a, accent in enumerate(_ACCENTS):
            for t, timbre in enumerate(_TIMBRES):
                split = "train" if t % len(_ACCENTS) != a else ("valid", "test")[t // len(_ACCENTS) % 2]
                speakers.append(Speaker(f"{accent}+{timbre}", pitch, split))
    return tuple(speakers)


SPEAKERS = _all_speakers()


@dataclass(frozen=True)
class _Clip:
    word: str
    number: int
    """How many clips of this word this speaker said before."""


def make_words(
    root: str | Path,
    clips_per_word: int = 100,
    seed: int = 0,
    workers: int | None = None,
    words: Sequence[str] = WORDS,
    speakers: Sequence[Speaker] = SPEAKERS,
) -> Path:
    """Make the corpus, or find it made.

    The folder gets ``<word>/<speaker>_nohash_<n>.wav`` (16 kHz, mono, 16 bit, up to 1 s), ``validation_list.txt``,
    ``testing_list.txt`` and ``_background_noise_/``, as in Speech Commands, and ``words.json``, by which it is
    recognised. It appears under its name only when complete. The same arguments give the same bytes, however many the
    workers.

    Args:
        root: the folder to make; its parents are made too.
        clips_per_word: clips of each word over all splits. Those of the default speakers go to train, validation and
            test about as 4 : 1 : 1.
        seed: of everything that varies between clips.
        workers: processes; as many as there are CPUs for this process if None.
        words: what to say, and the names of the folders.
        speakers: who says it; each clip of a word goes to the next one in turn.

    Returns:
        ``root``.

    Raises:
        UserError: ``root`` holds something else, or ``espeakng-loader`` is missing.
    """
    root = Path(root)
    parameters = {
        "recipe": _RECIPE,
        "clips_per_word": clips_per_word,
        "seed": seed,
        "words": list(words),
        "speakers": [list(speaker) for speaker in speakers],
    }
    if _is_made(root, parameters):
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    partial_root = root.with_name(f".{root.name}.{os.getpid()}.partial")
    try:
        for folder in (*words, "_background_noise_"):
            (partial_root / folder).mkdir(parents=True)
        clips = _share_out(words, speakers, clips_per_word)
        _speak_all(partial_root, clips, seed, workers or available_cpus())
        _write_noises(partial_root / "_background_noise_", seed)
        for name, split in (("validation_list.txt", "valid"), ("testing_list.txt", "test")):
            paths = sorted(
                _path(speaker, clip) for speaker in clips if speaker.split == split for clip in clips[speaker]
            )
            (partial_root / name).write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        (partial_root / _MARKER).write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
        partial_root.rename(root)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return root


def _is_made(root: Path, parameters: dict[str, object]) -> bool:
    """Whether ``root`` is the corpus with these parameters; False if there is nothing there, UserError otherwise."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{root} exists and is not a corpus of spoken words: name another folder")
    if found != parameters:
        changed = ", ".join(name for name in parameters if found.get(name) != parameters[name])
        raise UserError(f"{root} was made with other settings ({changed}): delete it, or name another folder")
    return True


def _share_out(words: Sequence[str], speakers: Sequence[Speaker], clips_per_word: int) -> dict[Speaker, list[_Clip]]:
    clips: dict[Speaker, list[_Clip]] = {speaker: [] for speaker in speakers}
    for w, word in enumerate(words):
        for i in range(clips_per_word):
            # Each word starts with another speaker, so that all say about as much when there are fewer clips than them.
            speaker = speakers[(w + i) % len(speakers)]
            clips[speaker].append(_Clip(word, i // len(speakers)))
    return {speaker: theirs for speaker, theirs in clips.items() if theirs}


def _speak_all(root: Path, clips: dict[Speaker, list[_Clip]], seed: int, workers: int) -> None:
    # One process a speaker: what eSpeak says depends on what its process said before, and that must not depend on how
    # the work was shared out. Forking each from a server that has imported this module makes it cost next to nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    total = sum(map(len, clips.values()))
    with (
        context.Pool(workers, maxtasksperchild=1) as pool,
        tqdm(total=total, desc="speaking words", unit="clip") as progress,
    ):
        for made in pool.imap_unordered(partial(_speak, root, seed), clips.items()):
            progress.update(made)


def _speak(root: Path, seed: int, share: tuple[Speaker, list[_Clip]]) -> int:
    speaker, clips = share
    speaker_rng = np.random.default_rng([seed, int(speaker.hash, 16)])
    rate, pitch_range = speaker_rng.uniform(*_SPEAKER_HABITS)
    room = _room(speaker_rng)
    with Espeak() as espeak:
        espeak.set_voice(speaker.voice)
        for clip in clips:
            rng = np.random.default_rng([seed, int(speaker.hash, 16), zlib.crc32(clip.word.encode()), clip.number])
            speech = espeak.say(
                clip.word,
                rate=round(rate * rng.uniform(*_RATE_FACTOR)),
                pitch=round(speaker.pitch + rng.uniform(*_PITCH_SHIFT)),
                pitch_range=round(pitch_range + rng.uniform(*_RANGE_SHIFT)),
            )
            if not speech.any():
                raise RuntimeError(f"eSpeak NG is silent on {clip.word!r} with the voice {speaker.voice!r}")
            recording = _record(_resample(_trim(speech), espeak.sample_rate, SAMPLE_RATE), room, rng)
            _write_wav(root / _path(speaker, clip), recording)
    return len(clips)


def _path(speaker: Speaker, clip: _Clip) -> str:
    return f"{clip.word}/{speaker.hash}_nohash_{clip.number}.wav"


def _trim(speech: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    return speech[loud[0] : loud[-1] + 1]


def _resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Band-limited, by cutting the spectrum; exact to less than a sample in length."""
    unit = np.gcd(rate, new_rate)
    blocks = -(-len(samples) * unit // rate)  # of rate/unit old samples, which are new_rate/unit new ones
    old, new = blocks * rate // unit, blocks * new_rate // unit
    spectrum = np.fft.rfft(samples, old)[: new // 2 + 1]
    return np.fft.irfft(spectrum, new) * (new / old)


def _room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response (0.25 s) of a microphone and a room: the direct sound, and noise that fades behind it."""
    samples = SAMPLE_RATE // 4
    fade_seconds = rng.uniform(0.02, 0.08)
    tail = rng.standard_normal(samples) * np.exp(-np.arange(samples) / (fade_seconds * SAMPLE_RATE))
    tail[0] = 0.0
    response = tail / np.linalg.norm(tail) * 10 ** (rng.uniform(*_ROOM_DB) / 20)
    response[0] = 1.0
    # The microphone: decibels at four frequencies, in a smooth line between them.
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    decibels = np.interp(
        np.log(frequencies + 1), np.log([100, 500, 2000, 7000]), rng.uniform(-_MICROPHONE_DB, _MICROPHONE_DB, 4)
    )
    return np.fft.irfft(np.fft.rfft(response) * 10 ** (decibels / 20), samples)


def _record(speech: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put one word into a clip.

    Args:
        speech: (N,) at 16 kHz, no silence around it.
        room: (M,) impulse response.
        rng: of this clip.

    Returns:
        (n,) in [-1, 1], n at most `CLIP_SAMPLES`, and as in Speech Commands less for one clip in ten.
    """
    speech = speech[:CLIP_SAMPLES]
    length = CLIP_SAMPLES if rng.random() < 0.9 else int(rng.integers(len(speech), CLIP_SAMPLES + 1))
    start = int(rng.integers(0, length - len(speech) + 1))
    padded = 2 * CLIP_SAMPLES  # holds speech and room, so that the product of the spectra does not wrap around
    heard = np.fft.irfft(np.fft.rfft(speech, padded) * np.fft.rfft(room, padded), padded)[: length - start]
    noise = _noise(rng, length, slope=rng.uniform(0, 2))
    noise *= np.sqrt(np.mean(heard[: len(speech)] ** 2)) * 10 ** (-rng.uniform(*_SNR_DB) / 20)
    noise[start:] += heard
    return noise / np.abs(noise).max() * 10 ** (rng.uniform(*_PEAK_DB) / 20)


def _noise(rng: np.random.Generator, samples: int, slope: float) -> np.ndarray:
    """(samples,) Gaussian noise of power 1 whose power falls as 1 / f^slope above 50 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(frequencies, 50) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, samples)
    return noise / np.sqrt(np.mean(noise**2))


def _write_noises(folder: Path, seed: int) -> None:
    rng = np.random.default_rng([seed, zlib.crc32(b"_background_noise_")])
    samples = _NOISE_SECONDS * SAMPLE_RATE
    seconds = np.arange(samples) / SAMPLE_RATE
    noises = {name: _noise(rng, samples, slope) for name, slope in _NOISES.items()}
    hum = sum(np.sin(2 * np.pi * _HUM_HZ * k * seconds + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 20))
    noises["mains_hum"] = hum + 0.1 * _noise(rng, samples, slope=1.0)
    # Water: hiss whose loudness wanders.
    noises["running_tap"] = _noise(rng, samples, slope=0.5) * np.exp(
        0.5 * np.sin(2 * np.pi * 0.7 * seconds + rng.random())
    )
    for name, noise in noises.items():
        _write_wav(folder / f"{name}.wav", noise / np.abs(noise).max() * 0.5)


def _write_wav(path: Path, samples: np.ndarray) -> None:
    # Not soundfile, which waits until each file is on the disk.
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
