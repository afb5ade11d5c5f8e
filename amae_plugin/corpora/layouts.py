"""The layouts that ``amae manifest`` knows, by name."""

from amae_plugin.corpora import (
    audioset,
    esc50,
    folder,
    iemocap,
    librispeech,
    shards,
    speech_commands,
    text,
    voxceleb1,
)

_CORPORA = (folder, shards, speech_commands, voxceleb1, audioset, esc50, librispeech, iemocap, text)

LAYOUTS = {corpus.LAYOUT.name: corpus.LAYOUT for corpus in _CORPORA}
