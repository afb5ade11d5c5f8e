"""Transcribe audio files with a recogniser.

Prints the text of each file, or writes the texts to FILE. A .csv file has a row a clip with path and text, or with
--timestamps a row a word with path, start, end and word. A .json file has path, text and words of each clip, and word,
start and end of each word. A .tsv or .txt file has path, tab and text in each line, as `amae manifest text` reads it,
without the clips in which no word is heard. A .srt file has the subtitles of one clip. Times are in seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amae_plugin.cli.clips import add_clips, conclude
from amae_plugin.corpora.transcripts import normalize
from amae_plugin.data.lines import write_lines
from amae_plugin.errors import UserError, first_of, printable
from amae_plugin.files import try_place, write_csv, write_json, writing

if TYPE_CHECKING:
    from amae_plugin.inference.transcription import TimedWord, Transcription

_FORMATS = (".csv", ".json", ".tsv", ".txt", ".srt")
# What ends a subtitle: a pause, or more than is read with ease.
_PAUSE_SECONDS, _MOST_SECONDS, _MOST_LETTERS = 1.0, 6.0, 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_clips(parser)
    parser.add_argument(
        "--timestamps", action="store_true", help="print the words of each clip with their start and end"
    )
    out = f"write to this file, which ends in {', '.join(_FORMATS)}, not to the terminal"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)


def run(args: argparse.Namespace) -> int:
    """Print or write the texts and list the files that cannot be used."""
    if args.out is not None and args.out.suffix not in _FORMATS:
        raise UserError(f"--out {args.out}: its name must end in {' or '.join(_FORMATS)}")
    from amae_plugin.inference.clips import ClipFiles
    from amae_plugin.inference.model import load_model

    model = load_model(args.checkpoint, args.device, args.batch_size)
    _ = model.checkpoint.units  # before the work
    clips = ClipFiles(args.paths, model.input.front_end, args.workers, "transcribing")
    if args.out is not None:
        if args.out.suffix == ".srt" and len(clips) > 1:
            raise UserError(f"--out {args.out}: subtitles are those of one clip, and there are {len(clips):,}")
        with writing(args.out):  # before the work, which is in vain if its results cannot be written
            try_place(args.out)
    found = {str(path): transcription for path, transcription in clips.map(model.transcriptions)}
    code = conclude(clips)
    if args.out is None:
        for path, (text, words) in found.items():
            print(f"{printable(path)}: {printable(text)}")
            for word in words if args.timestamps else ():
                print(f"  {word.start:.2f}\t{word.end:.2f}\t{printable(word.word)}")
        return code
    if args.out.suffix in (".tsv", ".txt"):
        wordless = [path for path, (text, _) in found.items() if not normalize(text, punctuation="remove")]
        for path in wordless:
            del found[path]
        if wordless:
            listed = printable(first_of(wordless))
            print(f"left out, as no word is heard in them: {len(wordless):,} clips, {listed}", file=sys.stderr)
    with writing(args.out):
        _write(args.out, found, args.timestamps)
    print(f"texts of {len(found):,} clips: {args.out}")
    return code


def _write(out: Path, found: Mapping[str, Transcription], timestamps: bool) -> None:
    if out.suffix == ".json":
        entries = ((path, text, list(map(_plain, words))) for path, (text, words) in found.items())
        write_json(out, [dict(zip(("path", "text", "words"), entry)) for entry in entries])
    elif out.suffix == ".srt":
        write_lines(out, _subtitles([word for _, words in found.values() for word in words]))
    elif out.suffix == ".csv" and timestamps:
        rows = ([path, *_plain(word).values()] for path, (_, words) in found.items() for word in words)
        write_csv(out, [["path", "start", "end", "word"], *rows])
    elif out.suffix == ".csv":
        write_csv(out, [["path", "text"], *([path, text] for path, (text, _) in found.items())])
    else:  # wherever the file lies, absolute paths lead to the clips
        write_lines(out, (f"{printable(str(Path(path).absolute()))}\t{text}" for path, (text, _) in found.items()))


def _plain(word: TimedWord) -> dict[str, object]:
    return {"start": round(word.start, 3), "end": round(word.end, 3), "word": word.word}


def _subtitles(words: Sequence[TimedWord]) -> Iterator[str]:
    """Yield the lines of SubRip's format."""
    cues: list[list[TimedWord]] = []
    for word in words:
        cue = cues[-1] if cues else []
        letters = len(" ".join(one.word for one in (*cue, word)))
        paused = not cue or word.start - cue[-1].end > _PAUSE_SECONDS
        if paused or word.end - cue[0].start > _MOST_SECONDS or letters > _MOST_LETTERS:
            cues.append([word])
        else:
            cue.append(word)
    for number, cue in enumerate(cues, 1):
        yield from (str(number), f"{_clock(cue[0].start)} --> {_clock(cue[-1].end)}", " ".join(w.word for w in cue), "")


def _clock(seconds: float) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"
