"""``amae manifest``: write the manifests of a corpus; one sub-subcommand a publisher's layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amae_plugin.corpora import (
    audioset,
    class_folders,
    esc50,
    folder,
    iemocap,
    librispeech,
    speech_commands,
    voxceleb1,
)
from amae_plugin.corpora.corpus import Corpus
from amae_plugin.errors import UserError

if TYPE_CHECKING:
    _Layouts = argparse._SubParsersAction[argparse.ArgumentParser]

_ALL = "all"  # of --fold


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``manifest`` and its layouts."""
    parser = subparsers.add_parser("manifest", help="write the manifests of a corpus")
    layouts = parser.add_subparsers(required=True, metavar="LAYOUT")
    _add_folder(layouts)
    _add_speech_commands(layouts)
    _add_voxceleb1(layouts)
    _add_audioset(layouts)
    _add_esc50(layouts)
    _add_librispeech(layouts)
    _add_iemocap(layouts)


def _add_folder(layouts: _Layouts) -> None:
    parser = layouts.add_parser("folder", help="any tree of audio files, split at random")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the tree; symbolic links are followed")
    _add_out(parser)
    parser.add_argument("--labels", action="store_true", help="the topmost folders of the tree are classes")
    parser.add_argument("--valid-fraction", type=float, default=0.05, help="share of files held out (%(default)s)")
    parser.add_argument(
        "--test-fraction", type=float, default=0.0, help="share held out for testing, with --labels (%(default)s)"
    )
    parser.add_argument(
        "--ext", nargs="+", default=folder.AUDIO_EXTENSIONS, help=f"extensions ({' '.join(folder.AUDIO_EXTENSIONS)})"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the choice of files held out (%(default)s)")
    parser.set_defaults(run=_run_folder)


def _run_folder(args: argparse.Namespace) -> int:
    if args.labels:
        corpus = class_folders.build(
            args.folder, args.out, args.valid_fraction, args.test_fraction, args.ext, args.seed, args.workers
        )
        return _report(args.out, corpus)
    if args.test_fraction:
        raise UserError("--test-fraction needs --labels: what has no labels is not tested on")
    summary, duplicates = folder.build(args.folder, args.out, args.valid_fraction, args.ext, args.seed, args.workers)
    warnings = [f"links to other files of the tree, left out: {duplicates:,}"] if duplicates else []
    return _report(args.out, Corpus(summary, 0, tuple(warnings)))


def _add_speech_commands(layouts: _Layouts) -> None:
    parser = layouts.add_parser("speech_commands", help="Speech Commands: 35 words, or 10 with unknown and silence")
    parser.add_argument("root", type=Path, metavar="ROOT", help="the unpacked archive")
    _add_out(parser)
    parser.add_argument("--task", choices=speech_commands.TASKS, required=True, help="of v0.02 or of v0.01")
    parser.add_argument("--test-root", type=Path, metavar="DIR", help="v1-12: the unpacked test archive")
    parser.add_argument(
        "--other-words",
        choices=speech_commands.OTHER_WORDS,
        default="sampled",
        help="v1-12: how many clips are unknown, a tenth as many as of the ten words or all there are (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="v1-12: of what is drawn (%(default)s)")
    _add_allow_missing(parser)
    parser.set_defaults(run=_run_speech_commands)


def _run_speech_commands(args: argparse.Namespace) -> int:
    corpus = speech_commands.build(
        args.root, args.out, args.task, args.test_root, args.other_words, args.seed, args.allow_missing, args.workers
    )
    return _report(args.out, corpus)


def _add_voxceleb1(layouts: _Layouts) -> None:
    parser = layouts.add_parser("voxceleb1", help="VoxCeleb1: speaker identification, and verification trials")
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of the speakers, or one above it")
    _add_out(parser)
    parser.add_argument(
        "--split", type=Path, default=Path("iden_split.txt"), metavar="FILE", help="here or in ROOT (%(default)s)"
    )
    parser.add_argument("--trials", type=Path, metavar="FILE", help="veri_test.txt, here or in ROOT")
    _add_allow_missing(parser)
    parser.set_defaults(run=_run_voxceleb1)


def _run_voxceleb1(args: argparse.Namespace) -> int:
    corpus = voxceleb1.build(args.root, args.split, args.out, args.trials, args.allow_missing, args.workers)
    return _report(args.out, corpus)


def _add_audioset(layouts: _Layouts) -> None:
    parser = layouts.add_parser("audioset", help="AudioSet: the tables and a folder of clips")
    parser.add_argument(
        "--csv",
        nargs="+",
        required=True,
        metavar="[SPLIT=]FILE",
        help="the tables; a name with train, eval or valid tells the split, and those of one split are joined",
    )
    parser.add_argument("--audio", type=Path, required=True, metavar="DIR", help="any tree of clips")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="class_labels_indices.csv")
    _add_out(parser)
    _add_allow_missing(parser)
    parser.set_defaults(run=_run_audioset)


def _run_audioset(args: argparse.Namespace) -> int:
    corpus = audioset.build(args.csv, args.audio, args.labels, args.out, args.allow_missing, args.workers)
    return _report(args.out, corpus)


def _add_esc50(layouts: _Layouts) -> None:
    parser = layouts.add_parser("esc50", help="ESC-50: one of its five folds tested on, or each in turn")
    parser.add_argument("root", type=Path, metavar="ROOT", help="the unpacked archive")
    _add_out(parser)
    _add_fold(parser, esc50.FOLDS, "tested on")
    parser.add_argument(
        "--valid-fold",
        type=_number_or_word,
        choices=(*esc50.FOLDS, "next"),
        help="validated on, so not trained on; next: the one after the test fold (the test fold once more)",
    )
    _add_allow_missing(parser)
    parser.set_defaults(run=_run_esc50)


def _run_esc50(args: argparse.Namespace) -> int:
    if args.fold == _ALL and args.valid_fold in esc50.FOLDS:
        raise UserError(
            f"--fold all --valid-fold {args.valid_fold}: one of the runs tests on fold {args.valid_fold}; "
            "--valid-fold next validates each run on the fold after its test fold"
        )
    outs = _fold_folders(args, esc50.FOLDS)
    corpora = esc50.build(args.root, outs, args.valid_fold, args.allow_missing, args.workers)
    if args.fold != _ALL:
        return _report(args.out, corpora[args.fold])
    return _report_folds(outs, corpora, f"finetune_audio_mae_esc50 task.data={args.out.absolute()}")


def _add_librispeech(layouts: _Layouts) -> None:
    parser = layouts.add_parser("librispeech", help="LibriSpeech, for pretraining: no labels")
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder with train-clean-100 and others")
    _add_out(parser)
    parser.add_argument("--seed", type=int, default=1, help="of what is held out if there is no dev-* (%(default)s)")
    parser.set_defaults(run=_run_librispeech)


def _run_librispeech(args: argparse.Namespace) -> int:
    return _report(args.out, librispeech.build(args.root, args.out, args.seed, args.workers))


def _add_iemocap(layouts: _Layouts) -> None:
    parser = layouts.add_parser(
        "iemocap", help="IEMOCAP: four emotions, one of its five sessions tested on, or each in turn"
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder with Session1 to Session5")
    _add_out(parser)
    _add_fold(parser, iemocap.FOLDS, "the session tested on")
    parser.add_argument("--seed", type=int, default=1, help="of the validation clips (%(default)s)")
    _add_allow_missing(parser)
    parser.set_defaults(run=_run_iemocap)


def _run_iemocap(args: argparse.Namespace) -> int:
    outs = _fold_folders(args, iemocap.FOLDS)
    corpora = iemocap.build(args.root, outs, args.seed, args.allow_missing, args.workers)
    if args.fold != _ALL:
        return _report(args.out, corpora[args.fold])
    return _report_folds(outs, corpora, f"<recipe> task.data={','.join(str(out.absolute()) for out in outs.values())}")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the manifests go")
    parser.add_argument("--workers", type=int, help="threads that read headers (one a core)")


def _add_allow_missing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-missing", action="store_true", help="go on without listed files that are not there")


def _add_fold(parser: argparse.ArgumentParser, folds: Sequence[int], what: str) -> None:
    parser.add_argument(
        "--fold",
        type=_number_or_word,
        choices=(*folds, _ALL),
        required=True,
        help=f"{what}; all: each in turn, written to DIR/fold1, DIR/fold2, ...",
    )


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _fold_folders(args: argparse.Namespace, folds: Sequence[int]) -> dict[int, Path]:
    """Where the manifests of each fold go."""
    return {fold: args.out / f"fold{fold}" for fold in folds} if args.fold == _ALL else {args.fold: args.out}


def _report(out: Path, corpus: Corpus) -> int:
    out = out.absolute()
    for warning in corpus.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(corpus.summary)
    if corpus.classes:
        print(f"classes: {corpus.classes:,}, listed in {out / 'labels.txt'}")
    print(f"manifests: {', '.join(str(out / f'{split}.tsv') for split in corpus.summary.clips)}")
    print("next, the mean and standard deviation that the training needs, then the training itself:")
    print(f"  amae stats {out}")
    print(
        f"  fairseq-hydra-train --config-dir config --config-name <recipe> task.data={out} task.mean=... task.std=..."
    )
    return 0


def _report_folds(outs: Mapping[int, Path], corpora: Mapping[int, Corpus], training: str) -> int:
    """Report all folds of a corpus; *training* is the recipe and its data, for a run on each."""
    folders = [out.absolute() for out in outs.values()]
    folds_of: dict[str, list[str]] = {}
    for fold, corpus in corpora.items():
        for warning in corpus.warnings:
            folds_of.setdefault(warning, []).append(f"fold{fold}")
    for warning, folds in folds_of.items():
        where = "" if len(folds) == len(corpora) else f"{', '.join(folds)}: "
        print(f"warning: {where}{warning}", file=sys.stderr)
    for fold, corpus in corpora.items():
        print(f"fold{fold}, files: {corpus.summary.size}")
    # Every fold holds the same files, divided another way: what is said of them, the first says for all.
    first = next(iter(corpora.values()))
    print(first.summary.details)
    print(f"classes: {first.classes:,}, listed in the labels.txt of each fold")
    print(f"manifests: {', '.join(f'{split}.tsv' for split in first.summary.clips)} in each of")
    for out in folders:
        print(f"  {out}")
    print("next, the mean and standard deviation (those of one fold do for all), then a training run a fold:")
    print(f"  amae stats {folders[0]}")
    print(f"  fairseq-hydra-train -m --config-dir config --config-name {training} task.mean=... task.std=...")
    return 0
