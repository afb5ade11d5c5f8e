"""Embed audio files.

Embeds audio files of any length with a pretrained encoder or a classifier. FILE.npz holds paths (N) and embeddings (N,
D). With --timestamps it also holds the time steps of all clips, one clip after the other: steps (T, D), their
embeddings; timestamps (T), their centres in seconds; and offsets (N + 1): clip i has the steps offsets[i] to offsets[i
+ 1]. In DIR, each clip has a file of its own with embedding (D), and with --timestamps steps and timestamps.

With --format hubert, PATH is a manifest, and DIR gets the files from which learn_kmeans.py and dump_km_label.py of
fairseq's HuBERT go on: SPLIT_RANK_SHARDS.npy, the time steps of a layer of all clips of the shard, and .len, their
numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from amae_plugin.cli.arguments import natural, positive
from amae_plugin.cli.clips import add_clips, add_pooling, conclude, tell_sound_alone
from amae_plugin.errors import UserError
from amae_plugin.files import replacing, try_place, writing

if TYPE_CHECKING:
    import numpy as np

_OTHER_FILES = (".csv", ".h5", ".hdf5", ".json", ".npy", ".parquet", ".pickle", ".pkl", ".pt", ".pth", ".tsv", ".txt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_clips(parser, "take this audio file, or those of this folder; with --format hubert, a manifest (.tsv)")
    text = "write one file for all clips, or a folder of files"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz|DIR", help=text)
    parser.add_argument("--timestamps", action="store_true", help="embed the time steps as well")
    parser.add_argument(
        "--teacher", action="store_true", help="embed by the teacher that followed the encoder in pretraining"
    )
    add_pooling(parser)
    parser.add_argument(
        "--format", choices=("npz", "hubert"), default="npz", help="write files of this form (default: %(default)s)"
    )
    add = parser.add_argument_group("with --format hubert").add_argument
    add("--layer", type=natural, metavar="N", help="write the output of this transformer block, from 1")
    add("--rank", type=natural, default=0, metavar="R", help="write this shard, from 0 (default: %(default)s)")
    add(
        "--shards",
        type=positive,
        default=1,
        metavar="S",
        help="divide each manifest into this many shards (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the embeddings and list the files that cannot be used."""
    if args.format == "hubert":
        return _write_hubert(args)
    if args.layer is not None or args.rank or args.shards > 1:
        raise UserError("--layer, --rank and --shards go with --format hubert")
    if args.out.suffix.lower() in _OTHER_FILES:
        raise UserError(f"--out {args.out}: embeddings are written to one file FILE.npz, or to a folder of such files")
    import numpy as np

    from amae_plugin.inference.clips import ClipFiles
    from amae_plugin.inference.model import load_model

    model = load_model(args.checkpoint, args.device, args.batch_size, teacher=args.teacher, pooling=args.pooling)
    tell_sound_alone(model.checkpoint)
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


def _write_hubert(args: argparse.Namespace) -> int:
    if args.layer is None:
        raise UserError("--format hubert writes one layer: give its number, such as --layer 6")
    if args.timestamps or args.pooling != "mean":
        raise UserError("--timestamps and --pooling go with --format npz: hubert's files hold time steps alone")
    if args.rank >= args.shards:
        raise UserError(f"--rank {args.rank}: the ranks of {args.shards} shards are 0 to {args.shards - 1}")
    from amae_plugin.inference.model import load_model
    from amae_plugin.interop.hubert import HubertShard

    shards = [HubertShard.of(path, args.rank, args.shards) for path in args.paths]
    names = [shard.name for shard in shards]
    for path, name in zip(args.paths, names):
        if names.count(name) > 1:
            raise UserError(f"{path} and another would both be written to {args.out / name}.npy; use two folders")
    model = load_model(args.checkpoint, args.device, args.batch_size, teacher=args.teacher)
    tell_sound_alone(model.checkpoint)
    for shard in shards:
        steps = shard.write(args.out, model, args.layer, args.workers)
        print(
            f"{steps:,} time steps of {len(shard):,} clips, {model.embed_dim} values each: {args.out / shard.name}.npy"
        )
    return 0


def _files(folder: Path, names: Mapping[Path, str]) -> dict[Path, Path]:
    """Name the file of each clip; no two clips have the same."""
    files = {path: folder / f"{name}.npz" for path, name in names.items()}
    first: dict[Path, Path] = {}
    for path, file in files.items():
        if first.setdefault(file, path) != path:
            raise UserError(f"{first[file]} and {path} would both be written to {file}; embed them into two folders")
    return files


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
