"""``amae embed``: embeddings of audio files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amae_plugin.cli.arguments import add_clips
from amae_plugin.cli.files import writing
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import ClipFiles
from amae_plugin.inference.model import Embedding, load_model

_DESCRIPTION = """
Embeds audio files of any length with a pretrained encoder or a classifier. FILE.npz holds paths (N) and embeddings (N,
D); with --timestamps also those of the time steps of all clips, one clip after the other: steps (T, D), timestamps (T),
the centres of the steps in seconds, and offsets (N + 1): clip i has the steps offsets[i] to offsets[i + 1]. In DIR,
each clip has a file of its own with embedding (D), and with --timestamps with steps and timestamps.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``embed``."""
    parser = subparsers.add_parser("embed", help="embeddings of audio files", description=_DESCRIPTION)
    add_clips(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz|DIR", help="where they go")
    parser.add_argument("--timestamps", action="store_true", help="embeddings of the time steps as well")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    model = load_model(args.checkpoint, args.device, args.batch_size)
    clips = ClipFiles(args.paths, model.input.front_end, args.workers, "embedding")
    with writing(args.out):  # before the work, which is in vain if its results cannot be written
        out = _File(args.out) if args.out.suffix == ".npz" else _Folder(args.out, clips.names)
    count = 0
    for path, embedding in clips.map(model.embeddings):
        with writing(args.out):
            out.add(path, embedding if args.timestamps else embedding.clip)
        count += 1
    code = clips.conclude()
    with writing(args.out):
        out.close()
    print(f"embeddings of {count:,} clips, {model.embed_dim} values each: {args.out}")
    return code


class _File:
    """One file for all clips."""

    def __init__(self, path: Path):
        self.path = path
        self.paths: list[str] = []
        self.found: list[Embedding | Tensor] = []
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, path: Path, embedding: Embedding | Tensor) -> None:
        self.paths.append(str(path))
        self.found.append(embedding)

    def close(self) -> None:
        clips = [found.clip if isinstance(found, Embedding) else found for found in self.found]
        arrays = {"paths": np.array(self.paths), "embeddings": torch.stack(clips).numpy()}
        detailed = [found for found in self.found if isinstance(found, Embedding)]
        if detailed:
            arrays["steps"] = torch.cat([found.steps for found in detailed]).numpy()
            arrays["timestamps"] = torch.cat([found.timestamps for found in detailed]).numpy()
            arrays["offsets"] = np.cumsum([0, *(len(found.steps) for found in detailed)])
        np.savez(self.path, allow_pickle=False, **arrays)


class _Folder:
    """A file for each clip."""

    def __init__(self, folder: Path, names: Mapping[Path, str]):
        self.files = {path: folder / f"{name}.npz" for path, name in names.items()}
        first: dict[Path, Path] = {}
        for path, file in self.files.items():
            if first.setdefault(file, path) != path:
                raise UserError(
                    f"{first[file]} and {path} would both be written to {file}; embed them into two folders"
                )
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, path: Path, embedding: Embedding | Tensor) -> None:
        self.files[path].parent.mkdir(parents=True, exist_ok=True)
        if isinstance(embedding, Embedding):
            arrays = {"embedding": embedding.clip, "steps": embedding.steps, "timestamps": embedding.timestamps}
        else:
            arrays = {"embedding": embedding}
        np.savez(self.files[path], allow_pickle=False, **{name: values.numpy() for name, values in arrays.items()})

    def close(self) -> None:
        """Nothing is left to write."""
