"""eSpeak NG as a function from text to samples: a thin ctypes binding to the library that ``espeakng-loader`` ships.

Function names and numbers are those of eSpeak NG's public header ``speak_lib.h``.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from amae_plugin.errors import UserError

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
# Half of the library's default, at which its loudest voices clip.
_HEADROOM_VOLUME = 50
_NOISE_SEED = 1
# eSpeak NG keeps the path of its data in 160 bytes and ignores a longer one, which an environment deep in a home has.
_LONGEST_DATA_PATH = 155

# int callback(short *samples, int count, espeak_EVENT *events); samples is null at the end of a message.
_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The speech synthesiser, as a context manager.

    The library keeps its state in globals, so have one open in a process and use it from one thread. Part of that state
    (flutter, breath) runs on from one `say` to the next: the samples of an utterance depend on what was said before it
    in the process, and are the same only if that is the same.

    Raises:
        UserError: ``espeakng-loader`` is not installed, or its library or its voice data cannot be loaded.
    """

    sample_rate: int
    """Of everything that `say` returns, in Hz (22050)."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "the demo's words are spoken by the package espeakng-loader, which is not installed: "
                "pip install 'amae-plugin[demo]'"
            ) from error
        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            data_path = espeakng_loader.get_data_path()
        except (OSError, RuntimeError) as error:
            raise UserError(f"espeakng-loader is installed but does not load ({error}): reinstall it") from error

        self._open = ExitStack()
        self.sample_rate = self._library.espeak_Initialize(
            ctypes.c_int(_AUDIO_OUTPUT_SYNCHRONOUS),
            ctypes.c_int(0),
            ctypes.c_char_p(os.fsencode(self._short_path(data_path))),
            ctypes.c_int(_INITIALIZE_DONT_EXIT),
        )
        if self.sample_rate <= 0:
            self._open.close()
            raise UserError(f"eSpeak NG cannot read its voice data in {data_path}: reinstall espeakng-loader")
        self._open.callback(self._library.espeak_Terminate)
        self._chunks: list[np.ndarray] = []
        self._callback = _SynthCallback(self._receive)  # an attribute, because the library holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)
        self._set_parameter(_VOLUME, _HEADROOM_VOLUME)
        # Otherwise seeded by the clock, and breathy voices differ from run to run.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))

    def __enter__(self) -> Espeak:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    def set_voice(self, name: str) -> None:
        """Switch to a language, optionally with a variant: ``en-us``, ``en-us+f3``.

        Raises:
            UserError: no such language. An unknown variant is left out by the library without a word.
        """
        if self._library.espeak_SetVoiceByName(ctypes.c_char_p(name.encode())) != 0:
            raise UserError(f"eSpeak NG has no voice {name!r}")

    def say(self, text: str, rate: int = 175, pitch: int = 50, pitch_range: int = 50) -> np.ndarray:
        """Speak ``text`` with the present voice.

        Args:
            text: what to say, in the language of the voice.
            rate: words per minute, 80 to 450.
            pitch: 0 to 99; 50 is the voice's own.
            pitch_range: 0 (monotone) to 99; 50 is the voice's own.

        Returns:
            (N,) float32 in [-1, 1] at `sample_rate`, with the short silence that the library puts around speech.
        """
        self._set_parameter(_RATE, rate)
        self._set_parameter(_PITCH, pitch)
        self._set_parameter(_RANGE, pitch_range)
        self._chunks.clear()
        message = text.encode()
        status = self._library.espeak_Synth(
            ctypes.c_char_p(message),
            ctypes.c_size_t(len(message) + 1),
            ctypes.c_uint(0),  # from the first
            ctypes.c_int(0),  # character
            ctypes.c_uint(0),  # to the end
            ctypes.c_uint(_CHARS_UTF8),
            None,
            None,
        )
        if status != 0:
            raise RuntimeError(f"espeak_Synth failed with status {status} on {text!r}")
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, dtype=np.int16)
        return samples.astype(np.float32) / np.float32(32768)

    def _receive(self, samples: Any, count: int, events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    def _set_parameter(self, parameter: int, value: int) -> None:
        self._library.espeak_SetParameter(ctypes.c_int(parameter), ctypes.c_int(value), ctypes.c_int(0))

    def _short_path(self, path: str) -> str:
        """Return ``path``, or a link to it that lives until the synthesiser is closed if it is too long for eSpeak."""
        if len(os.fsencode(path)) <= _LONGEST_DATA_PATH:
            return path
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="espeak-"))
        link = Path(folder) / "espeak-ng-data"
        link.symlink_to(path, target_is_directory=True)
        return str(link)
