"""The demo's corpus: words of Speech Commands, spoken by eSpeak NG and laid out as its publisher lays it out.

Seventy-two voices, each an accent, a timbre and a pitch, stand in for the speakers. The validation and the test split
have voices that training never hears, though it does hear their timbres with other accents. A synthesiser says a word
almost the same way each time, so every clip gets its own speaking rate, pitch, position, noise and level, and every
speaker a room.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import wave
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from amae_plugin.corpora.speech_commands import WORDS
from amae_plugin.data.audio import resample
from amae_plugin.demo.espeak import Espeak
from amae_plugin.errors import UserError
from amae_plugin.processes import available_cpus, end_with_parent
from amae_plugin.progress import tqdm

SAMPLE_RATE = CLIP_SAMPLES = 16000
"""The longest clip lasts 1 s, as in Speech Commands."""

# A voice is an accent, a timbre and a pitch: eSpeak's names of its English accents and of those of its variants that
# sound like people and are not near copies of one another.
_ACCENTS = ("en-us", "en", "en-gb-x-rp")
_TIMBRES = ("m1", "f1", "m2", "f2", "m3", "f3", "m4", "f4", "m5", "f5", "m7", "steph")
_PITCHES = (42, 58)

# Raised when the same parameters give other clips, so that an older folder is not taken for a new one.
_RECIPE = 2
_MARKER = "words.json"
_NOISES = "_background_noise_"
_NOISE_SAMPLES = 30 * SAMPLE_RATE
_NOISE_SLOPES = {"white_noise": 0.0, "pink_noise": 1.0, "brown_noise": 2.0}  # power falls as 1 / f^slope

# Least and most of what varies, drawn uniformly: of a speaker...
_WORDS_PER_MINUTE = (155, 195)
_PITCH_RANGE = (42, 58)
_FADE_SECONDS = (0.02, 0.08)  # of the reverberation
_ROOM_DB = (-34, -24)  # energy of the reverberation against the direct sound
# ... and of a clip.
_RATE_FACTOR = (0.95, 1.05)
_PITCH_SHIFT = (-3, 3)
_RANGE_SHIFT = (-8, 8)
_SNR_DB = (35, 55)
_PEAK_DB = (-9, -1)


class Speaker(NamedTuple):
    """A voice of eSpeak NG: accent and timbre, mean pitch, and the split that the speaker is in."""

    voice: str
    pitch: int
    split: str

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.voice}, pitch {self.pitch}"

    @property
    def hash(self) -> str:
        """The eight hexadecimal digits that name the speaker, as in Speech Commands."""
        return hashlib.sha1(f"{self.voice} {self.pitch}".encode()).hexdigest()[:8]

    def path(self, word: str, number: int) -> str:
        """Name the speaker's clip of a word, relative to the corpus."""
        return f"{word}/{self.hash}_nohash_{number}.wav"


def _split(accent: int, timbre: int) -> str:
    """Hold out one accent of each timbre, in turn for validation and for testing."""
    return "train" if timbre % len(_ACCENTS) != accent else ("valid", "test")[timbre // len(_ACCENTS) % 2]


SPEAKERS = tuple(
    Speaker(f"{_ACCENTS[a]}+{_TIMBRES[t]}", pitch, _split(a, t))
    for pitch, a, t in itertools.product(_PITCHES, range(len(_ACCENTS)), range(len(_TIMBRES)))
)


def make_words(
    root: str | Path,
    clips_per_word: int = 100,
    seed: int = 0,
    workers: int | None = None,
    words: Sequence[str] = WORDS,
    speakers: Sequence[Speaker] = SPEAKERS,
) -> Path:
    """Make the corpus, unless it is made already.

    The folder gets ``<word>/<speaker>_nohash_<n>.wav`` (16 kHz, mono, 16 bit, up to 1 s), ``validation_list.txt``,
    ``testing_list.txt`` and ``_background_noise_/``, as in Speech Commands, and ``words.json``, by which it is
    recognised. It appears under its name only when complete. The same arguments give the same bytes, whatever the
    number of workers.

    Args:
        root: folder to make; its parents are made too.
        clips_per_word: clips of each word over all splits. Those of the default speakers go to train, validation and
            test about as 4 : 1 : 1.
        seed: seed of everything that varies between clips.
        workers: processes; as many as there are CPUs for this process if None.
        words: words to speak, which name the folders.
        speakers: speakers, who take turns at the clips of a word.

    Returns:
        ``root``.

    Raises:
        UserError: ``root`` holds something else, or ``espeakng-loader`` is missing.
    """
    root = Path(root)
    parameters: dict[str, object] = {"recipe": _RECIPE, "clips_per_word": clips_per_word, "seed": seed}
    parameters |= {"words": list(words), "speakers": [list(speaker) for speaker in speakers]}
    if _is_made(root, parameters):
        return root

    clips: dict[Speaker, list[tuple[str, int]]] = defaultdict(list)  # words, and how often the speaker said them before
    for w, word in enumerate(words):
        for i in range(clips_per_word):
            # Each word starts with another speaker, so that all say about as much when there are fewer clips than them.
            clips[speakers[(w + i) % len(speakers)]].append((word, i // len(speakers)))
    partial_root = root.with_name(f".{root.name}.{os.getpid()}.partial")
    try:
        for folder in (*words, _NOISES):
            (partial_root / folder).mkdir(parents=True)
        _speak_all(partial_root, clips, seed, workers or available_cpus())
        rng = np.random.default_rng([seed, zlib.crc32(_NOISES.encode())])
        for name, slope in _NOISE_SLOPES.items():
            _write_wav(partial_root / _NOISES / f"{name}.wav", _noise(rng, _NOISE_SAMPLES, slope), peak=0.5)
        for name, split in (("validation_list.txt", "valid"), ("testing_list.txt", "test")):
            held_out = [speaker for speaker in clips if speaker.split == split]
            paths = sorted(f"{speaker.path(*clip)}\n" for speaker in held_out for clip in clips[speaker])
            (partial_root / name).write_text("".join(paths), encoding="utf-8")
        (partial_root / _MARKER).write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
        partial_root.rename(root)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return root


def _is_made(root: Path, parameters: Mapping[str, object]) -> bool:
    """Tell whether ``root`` is the corpus with these parameters or is yet to be made; it may be nothing else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{root} exists and is not a corpus of spoken words: name another folder")
    changed = ", ".join(name for name in parameters if found.get(name) != parameters[name])
    if changed:
        raise UserError(f"{root} was made with other settings ({changed}): delete it, or name another folder")
    return True


def _speak_all(root: Path, clips: Mapping[Speaker, Sequence[tuple[str, int]]], seed: int, workers: int) -> None:
    # One process a speaker: what eSpeak says depends on what its process said before, and that must not depend on how
    # the work was shared out. Forking each from a server that has imported this module makes it cost next to nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    progress = tqdm(total=sum(map(len, clips.values())), desc="speaking words", unit="clip")
    with context.Pool(workers, end_with_parent, maxtasksperchild=1) as pool, progress:
        for made in pool.imap_unordered(partial(_speak, root, seed), clips.items()):
            progress.update(made)


def _speak(root: Path, seed: int, share: tuple[Speaker, Sequence[tuple[str, int]]]) -> int:
    """Write the clips of a speaker; returns their number."""
    speaker, clips = share
    torch.set_num_threads(1)  # the speakers share the processors
    speaker_rng = np.random.default_rng([seed, int(speaker.hash, 16)])
    rate, pitch_range = speaker_rng.uniform(*_WORDS_PER_MINUTE), speaker_rng.uniform(*_PITCH_RANGE)
    room = _room(speaker_rng)
    with Espeak() as espeak:
        espeak.set_voice(speaker.voice)
        for word, number in clips:
            rng = np.random.default_rng([seed, int(speaker.hash, 16), zlib.crc32(word.encode()), number])
            faster, higher, wider = (rng.uniform(*bounds) for bounds in (_RATE_FACTOR, _PITCH_SHIFT, _RANGE_SHIFT))
            speech = espeak.say(word, round(rate * faster), round(speaker.pitch + higher), round(pitch_range + wider))
            loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max(initial=0))
            if not len(loud):
                raise RuntimeError(f"eSpeak NG is silent on {word!r} with the voice {speaker.voice!r}")
            trimmed = torch.from_numpy(speech[loud[0] : loud[-1] + 1])
            recording = _record(resample(trimmed, espeak.sample_rate, SAMPLE_RATE).numpy(), room, rng)
            _write_wav(root / speaker.path(word, number), recording, peak=10 ** (rng.uniform(*_PEAK_DB) / 20))
    return len(clips)


def _room(rng: np.random.Generator) -> np.ndarray:
    """Draw the impulse response of a room (0.25 s): the direct sound, and noise that fades behind it."""
    seconds = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    response = np.exp(-seconds / rng.uniform(*_FADE_SECONDS)) * rng.standard_normal(len(seconds))
    response *= 10 ** (rng.uniform(*_ROOM_DB) / 20) / np.linalg.norm(response)
    response[0] = 1.0
    return response


def _record(speech: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place a word (N,) that a room (M,) reverberates in noise.

    Returns:
        (n,), n at most `CLIP_SAMPLES`, and as in Speech Commands less for one clip in ten.
    """
    speech = speech[:CLIP_SAMPLES]
    length = CLIP_SAMPLES if rng.random() < 0.9 else int(rng.integers(len(speech), CLIP_SAMPLES + 1))
    start = int(rng.integers(0, length - len(speech) + 1))
    padded = 2 * CLIP_SAMPLES  # holds speech and room, so the product of the spectra does not wrap around
    heard = np.fft.irfft(np.fft.rfft(speech, padded) * np.fft.rfft(room, padded), padded)[: length - start]
    noise = _noise(rng, length, slope=rng.uniform(0, 2))
    noise *= np.std(heard[: len(speech)]) / np.std(noise) * 10 ** (-rng.uniform(*_SNR_DB) / 20)
    noise[start:] += heard
    return noise


def _noise(rng: np.random.Generator, samples: int, slope: float) -> np.ndarray:
    """Gaussian noise (samples,) whose power falls as 1 / f^slope above 50 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    return np.fft.irfft(spectrum * np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 50) ** (-slope / 2), samples)


def _write_wav(path: Path, samples: np.ndarray, peak: float) -> None:
    # Not soundfile, which takes thirty times as long for a short file.
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(np.round(samples * (peak * 32767 / np.abs(samples).max())).astype("<i2").tobytes())
