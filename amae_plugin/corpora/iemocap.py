"""IEMOCAP (Busso et al. 2008): five sessions of two actors; four emotions, as in SUPERB's emotion recognition.

``Session<n>/dialog/EmoEvaluation/<dialog>.txt`` has a line ``[start - end] <clip> <emotion> [valence, ...]`` for each
clip ``Session<n>/sentences/wav/<dialog>/<clip>.wav``. The classes are anger, happiness (which includes excitement),
neutral and sadness; other clips are left out. Published results are the mean of five runs, each tested on one session;
a fifth of the other four is drawn at random for validation.
"""

import argparse
import re
from pathlib import Path

from amae_plugin.corpora.audio_files import add_allow_missing, compare_sizes, find_listed, find_root
from amae_plugin.corpora.corpus import Corpus, LabelledClip, Layout, read_headers, write_corpus
from amae_plugin.corpora.splits import FOLDS, Fold, add_fold, list_runs, split_names
from amae_plugin.errors import UserError
from amae_plugin.files import reading

CLASSES = ("ang", "hap", "neu", "sad")
_EMOTIONS = {"ang": "ang", "hap": "hap", "exc": "hap", "neu": "neu", "sad": "sad"}
_VALID_FRACTION = 0.2
_PUBLISHED = {"ang": 1_103, "hap": 1_636, "neu": 1_708, "sad": 1_084}
_CLIP_LINE = re.compile(r"\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+(\S+)\s+(\w+)\s")


def build(root: Path, out: Path, fold: Fold, *, seed: int = 1, allow_missing: bool = False, workers: int = 0) -> Corpus:
    """Write ``train``, ``valid`` and ``test`` of one of the five runs, or of all.

    Args:
        root: folder of the sessions, or the one that holds it.
        out: folder of the manifests; with all runs, the folder of their folders.
        fold: session tested on, or ``all``.
        seed: seed of the draw of validation clips.
        allow_missing: whether listed files that do not exist are left out.
        workers: number of threads that read headers.

    Raises:
        UserError: the folder has another layout, a session has no clip of the four classes, there is no such session,
            or files are missing.
    """
    root = find_root(root, "Session1", "IEMOCAP")
    sessions = {number: _read_session(root, number) for number in FOLDS}
    emotions = {name: emotion for session in sessions.values() for name, emotion in session.items()}
    found, warnings = find_listed(root, list(emotions), "EmoEvaluation", allow_missing)
    by_class = {label: [name for name in found if emotions[name] == label] for label in CLASSES}
    warnings += compare_sizes(by_class, _PUBLISHED)

    scan = read_headers(root, list(found.values()), workers)
    readable = {name for name, path in found.items() if path in scan.headers}

    def split(test: int) -> dict[str, list[LabelledClip]]:
        others = [name for number in FOLDS if number != test for name in sessions[number] if name in readable]
        names = split_names(others, {"valid": _VALID_FRACTION}, seed)
        names["test"] = [name for name in sessions[test] if name in readable]
        return {part: [LabelledClip(found[name], (emotions[name],)) for name in names[part]] for part in names}

    return write_corpus(root, list_runs(out, fold, split), CLASSES, warnings=warnings, scan=scan)


def _read_session(root: Path, number: int) -> dict[str, str]:
    """Read the path and the class of each clip of the four classes."""
    folder = f"Session{number}"
    clips: dict[str, str] = {}
    # The archive has a hidden file next to each table, left there by the system that packed it.
    for table in sorted((root / folder / "dialog" / "EmoEvaluation").glob("[!.]*.txt")):
        with reading(table, "the table"):
            lines = table.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        for line in lines:
            match = _CLIP_LINE.match(line)
            if match and match[2] in _EMOTIONS:
                dialog = match[1].rsplit("_", 1)[0]
                clips[f"{folder}/sentences/wav/{dialog}/{match[1]}.wav"] = _EMOTIONS[match[2]]
    if not clips:
        raise UserError(f"{root / folder}: dialog/EmoEvaluation/*.txt there names no clip of {', '.join(CLASSES)}")
    return clips


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="take this folder, with Session1 to Session5")
    add_fold(parser, "session")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="draw validation clips with this seed (default: %(default)s)"
    )
    add_allow_missing(parser)


_HELP = "list IEMOCAP: four emotions, one of its five sessions tested on, or each in turn"
LAYOUT = Layout("iemocap", _HELP, _add_arguments, build)
