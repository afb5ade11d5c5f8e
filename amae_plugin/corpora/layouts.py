"""The layouts that ``amae manifest`` knows, by name."""

from amae_plugin.corpora import (
    audioset,
    esc50,
    folder,
    iemocap,
    librispeech,
    pairs,
    speech_commands,
    text,
    vggsound,
    videos,
    voxceleb1,
)

_CORPORA = (folder, speech_commands, voxceleb1, audioset, esc50, librispeech, iemocap, text, videos, pairs, vggsound)

LAYOUTS = {corpus.LAYOUT.name: corpus.LAYOUT for corpus in _CORPORA}
