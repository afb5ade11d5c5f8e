"""IEMOCAP (Busso et al. 2008): five sessions of two actors; four emotions, as in SUPERB's emotion recognition.

``Session<n>/dialog/EmoEvaluation/<dialog>.txt`` has a line ``[start - end] <clip> <emotion> [valence, ...]`` for each
clip ``Session<n>/sentences/wav/<dialog>/<clip>.wav``. The classes are anger, happiness (which takes in excitement),
neutral and sadness; other clips are left out. Published results are the mean of five runs, each tested on one session;
a fifth of the other four is drawn at random for validation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from amae_plugin.corpora.corpus import Corpus, LabelledClip, compare_counts, find_listed, find_root, write_corpus
from amae_plugin.corpora.folder import split_names
from amae_plugin.corpora.headers import read_headers
from amae_plugin.errors import UserError

FOLDS = (1, 2, 3, 4, 5)
CLASSES = ("ang", "hap", "neu", "sad")
_EMOTIONS = {"ang": "ang", "hap": "hap", "exc": "hap", "neu": "neu", "sad": "sad"}
_VALID_FRACTION = 0.2
_PUBLISHED = {"ang": 1_103, "hap": 1_636, "neu": 1_708, "sad": 1_084}
_CLIP_LINE = re.compile(r"\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+(\S+)\s+(\w+)\s")


def build(
    root: Path, outs: Mapping[int, Path], seed: int = 1, allow_missing: bool = False, workers: int | None = None
) -> dict[int, Corpus]:
    """Write ``train``, ``valid`` and ``test`` of some of the five runs; every header is read once.

    Args:
        root: the folder of the sessions, or the one that holds it.
        outs: where those of a run go, by the session tested on, 1 to 5.
        seed: of the clips drawn for validation.
        allow_missing: go on without listed files that are not there.
        workers: threads that read headers.

    Returns:
        What was written for each session tested on.

    Raises:
        UserError: the folder has another layout, a session holds no clip of the four classes, or files are missing.
    """
    for fold in outs:
        if fold not in FOLDS:
            raise UserError(f"--fold {fold}: must be one of {FOLDS}")
    root = find_root(root, "Session1", "IEMOCAP")
    emotions = {number: _read_session(root, number) for number in FOLDS}
    every = {path: emotion for session in emotions.values() for path, emotion in session.items()}
    found, warnings = find_listed(root, list(every), "EmoEvaluation", allow_missing)
    warnings += compare_counts(Counter(every[path] for path in found), _PUBLISHED)
    scan = read_headers(root, list(found.values()), workers)
    corpora = {}
    for fold, out in outs.items():
        others = [path for number in FOLDS if number != fold for path in emotions[number] if path in found]
        names = split_names(others, {"valid": _VALID_FRACTION}, seed)
        names["test"] = [path for path in emotions[fold] if path in found]
        splits = {split: [LabelledClip(found[path], (every[path],)) for path in part] for split, part in names.items()}
        corpora[fold] = write_corpus(out, root, splits, CLASSES, warnings, scan=scan)
    return corpora


def _read_session(root: Path, number: int) -> dict[str, str]:
    """Path and class of each clip of the four classes."""
    folder = f"Session{number}"
    clips: dict[str, str] = {}
    # The archive holds a hidden file beside each table, left there by the system it was packed on.
    for table in sorted((root / folder / "dialog" / "EmoEvaluation").glob("[!.]*.txt")):
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            match = _CLIP_LINE.match(line)
            if match and match[2] in _EMOTIONS:
                dialog = match[1].rsplit("_", 1)[0]
                clips[f"{folder}/sentences/wav/{dialog}/{match[1]}.wav"] = _EMOTIONS[match[2]]
    if not clips:
        raise UserError(f"{root / folder}: dialog/EmoEvaluation/*.txt there names no clip of {', '.join(CLASSES)}")
    return clips
