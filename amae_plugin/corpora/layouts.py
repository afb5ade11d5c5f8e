"""The layouts that ``amae manifest`` knows, by name."""

from amae_plugin.corpora import (
    audioset,
    esc50,
    folder,
    iemocap,
    librispeech,
    pairs,
    shards,
    speech_commands,
    text,
    vggsound,
    videos,
    voxceleb1,
)

_SPEECH = (speech_commands, voxceleb1, librispeech, iemocap, text)
_CORPORA = (folder, shards, videos, pairs, *_SPEECH, audioset, esc50, vggsound)

LAYOUTS = {corpus.LAYOUT.name: corpus.LAYOUT for corpus in _CORPORA}
