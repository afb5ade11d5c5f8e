"""eSpeak NG as a function from text to samples: a thin ctypes binding to the library that ``espeakng-loader`` ships.

Names and numbers of functions are those of eSpeak NG's public header ``speak_lib.h``.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

import numpy as np

from amae_plugin.errors import UserError

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_HEADROOM_VOLUME = 50  # half of the library's default, at which its loudest voices clip
_NOISE_SEED = 1

# int callback(short *samples, int count, espeak_EVENT *events); samples is null at the end of a message.
_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The speech synthesiser, as a context manager.

    The library keeps its state in globals, so have one open in a process and use it from one thread. Part of that state
    (flutter, breath) carries over from one utterance to the next: the same sequence of utterances in a new process
    gives the same samples, a single utterance does not.

    Attributes:
        sample_rate: sample rate of the speech in Hz (22050).

    Raises:
        UserError: ``espeakng-loader`` is not installed, or its library or its voice data cannot be loaded.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader

            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            data = espeakng_loader.get_data_path()
        except ImportError as error:
            raise UserError("the demo needs the package espeakng-loader: pip install espeakng-loader") from error
        except (OSError, RuntimeError) as error:
            raise UserError(f"espeakng-loader is installed but does not load ({error}): reinstall it") from error
        # eSpeak NG ignores a path of more than 160 bytes, which an environment deep in a home has: a link is shorter.
        self._folder = tempfile.TemporaryDirectory(prefix="espeak-")
        link = Path(self._folder.name) / "espeak-ng-data"
        link.symlink_to(data, target_is_directory=True)
        output, options = _AUDIO_OUTPUT_SYNCHRONOUS, _INITIALIZE_DONT_EXIT
        self.sample_rate: int = self._library.espeak_Initialize(output, 0, os.fsencode(link), options)
        if self.sample_rate <= 0:
            self._folder.cleanup()
            raise UserError(f"eSpeak NG cannot read its voice data in {data}: reinstall espeakng-loader")
        self._speech = bytearray()
        self._callback = _SynthCallback(self._receive)  # an attribute, because the library holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_SetParameter(_VOLUME, _HEADROOM_VOLUME, 0)
        # The library seeds the noise of breathy voices by the clock.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))

    def __enter__(self) -> Espeak:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._library.espeak_Terminate()
        self._folder.cleanup()

    def set_voice(self, name: str) -> None:
        """Switch to a language, optionally with a variant: ``en-us``, ``en-us+f3``.

        Raises:
            UserError: the language does not exist. The library ignores an unknown variant silently.
        """
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"eSpeak NG has no voice {name!r}")

    def say(self, text: str, rate: int = 175, pitch: int = 50, pitch_range: int = 50) -> np.ndarray:
        """Speak ``text`` with the current voice.

        Args:
            text: words in the language of the voice.
            rate: words per minute, 80 to 450.
            pitch: 0 to 99; 50 is the voice's own.
            pitch_range: 0 (monotone) to 99; 50 is the voice's own.

        Returns:
            (N,) float32 in [-1, 1] at `sample_rate`, with the short silence that the library puts around speech.
        """
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._speech.clear()
        message = text.encode()
        size = ctypes.c_size_t(len(message) + 1)
        if status := self._library.espeak_Synth(message, size, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None):
            raise RuntimeError(f"espeak_Synth failed with status {status} on {text!r}")
        return np.frombuffer(self._speech, np.int16).astype(np.float32) / 32768

    def _receive(self, samples: int | None, count: int, events: int | None) -> int:
        if samples is not None:
            self._speech += ctypes.string_at(samples, 2 * count)
        return 0  # continue
