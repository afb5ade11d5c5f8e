"""The classes of Speech Commands, in index order: a module of its own because the demo needs no more of that corpus."""

from __future__ import annotations

_WORDS = """
    backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one
    right seven sheila six stop three tree two up visual wow yes zero
"""
WORDS = tuple(_WORDS.split())
"""The 35 words of v0.02, the classes of v2-35."""

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN = "_unknown_"
SILENCE = "_silence_"
TWELVE = (*COMMANDS, UNKNOWN, SILENCE)
"""The classes of v1-12."""
