"""Embed audio files.

Embeds audio files of any length with a pretrained encoder or a classifier. FILE.npz holds paths (N) and embeddings (N,
D). With --timestamps it also holds the time steps of all clips, one clip after the other: steps (T, D), their
embeddings; timestamps (T), their centres in seconds; and offsets (N + 1): clip i has the steps offsets[i] to offsets[i
+ 1]. In DIR, each clip has a file of its own with embedding (D), and with --timestamps steps and timestamps.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from amae_plugin.cli.clips import add_clips, conclude
from amae_plugin.errors import UserError
from amae_plugin.files import replacing, try_place, writing
from amae_plugin.inference.clips import ClipFiles
from amae_plugin.inference.model import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_clips(parser)
    text = "one file for all clips, or a folder of files"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz|DIR", help=text)
    parser.add_argument("--timestamps", action="store_true", help="embed the time steps as well")
    parser.add_argument(
        "--teacher", action="store_true", help="by the teacher that followed the encoder in pretraining"
    )
    text = "a clip is the mean of its time steps or the encoder's class token (%(default)s)"
    parser.add_argument("--pooling", choices=("mean", "cls"), default="mean", help=text)


def run(args: argparse.Namespace) -> int:
    """Write the embeddings and list the files that cannot be used."""
    model = load_model(args.checkpoint, args.device, args.batch_size, teacher=args.teacher, pooling=args.pooling)
    clips = ClipFiles(args.paths, model.input.front_end, args.workers, "embedding")
    in_one_file = args.out.suffix == ".npz"
    files = {} if in_one_file else _files(args.out, clips.names)
    with writing(args.out):  # before the work, which is in vain if its results cannot be written
        try_place(args.out if in_one_file else next(iter(files.values()), args.out / "x.npz"))
    paths: list[str] = []
    rows: list[dict[str, np.ndarray]] = []
    for path, embedding in clips.map(lambda waveforms: model.embeddings(waveforms, args.timestamps)):
        arrays = {"embedding": embedding.clip.numpy()}
        if args.timestamps:
            arrays |= {"steps": embedding.steps.numpy(), "timestamps": embedding.timestamps.numpy()}
        paths.append(str(path))
        if in_one_file:
            rows.append(arrays)
        else:
            with writing(args.out):
                files[path].parent.mkdir(parents=True, exist_ok=True)
                _save(files[path], arrays)
    code = conclude(clips)
    if in_one_file:
        arrays = {"paths": np.array(paths), "embeddings": np.stack([row["embedding"] for row in rows])}
        if args.timestamps:
            arrays |= {name: np.concatenate([row[name] for row in rows]) for name in ("steps", "timestamps")}
            arrays["offsets"] = np.cumsum([0, *(len(row["steps"]) for row in rows)])
        with writing(args.out):
            _save(args.out, arrays)
    print(f"embeddings of {len(paths):,} clips, {model.clip_dim} values each: {args.out}")
    return code


def _files(folder: Path, names: Mapping[Path, str]) -> dict[Path, Path]:
    """Name the file of each clip; no two clips have the same."""
    files = {path: folder / f"{name}.npz" for path, name in names.items()}
    first: dict[Path, Path] = {}
    for path, file in files.items():
        if first.setdefault(file, path) != path:
            raise UserError(f"{first[file]} and {path} would both be written to {file}; embed them into two folders")
    return files


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
