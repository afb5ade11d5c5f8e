"""``amae stats``: mean and standard deviation of a corpus's log-mel values, for normalisation."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor
from tqdm import tqdm

from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError

_CLIPS_PER_STEP = 8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stats``."""
    parser = subparsers.add_parser("stats", help="mean and standard deviation of a corpus, for normalisation")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST_OR_DIR", help="a manifest, or a folder of manifests")
    parser.add_argument("--split", default="train", help="which manifest of a folder (%(default)s)")
    parser.add_argument("--clips", type=int, default=2000, help="clips drawn at random; 0 means all (%(default)s)")
    parser.add_argument(
        "--target-length", type=int, default=1024, help="frames taken of longer clips, at random (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the draw (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    path = args.manifest / f"{args.split}.tsv" if args.manifest.is_dir() else args.manifest
    manifest = Manifest.read(path)
    if not len(manifest):
        raise UserError(f"{path}: holds no clips")
    if args.clips < 0 or args.target_length < 1:
        raise UserError("--clips must be 0 or more and --target-length 1 or more")
    # mean 0 and std 1/2 leave the features as they are.
    dataset = AudioDataset(
        manifest,
        target_length=args.target_length,
        mean=0.0,
        std=0.5,
        train=True,
        seed=args.seed,
        on_bad_audio="skip",
        max_bad_audio=len(manifest),
    )
    chosen = np.arange(len(manifest))
    if 0 < args.clips < len(manifest):
        chosen = np.sort(np.random.default_rng(args.seed).choice(len(manifest), args.clips, replace=False))
    figures = measure(dataset, chosen.tolist(), args.workers)
    clips, frames, skipped = (f"{figures[key]:,}" for key in ("clips", "frames", "skipped"))
    print(f"{clips} clips of {len(manifest):,}, {frames} frames, {skipped} unreadable")
    print(f"task.mean={figures['mean']:.7g} task.std={figures['std']:.7g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(dataset: AudioDataset, indices: Sequence[int], workers: int) -> dict[str, float | int]:
    """Mean and standard deviation over all bands of all real frames (not the padding) of some clips.

    Returns:
        ``mean``, ``std``, and how many ``clips`` and ``frames`` they were computed from and how many were ``skipped``.

    Raises:
        UserError: none of the clips could be decoded.
    """
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(dataset, indices),
        batch_size=_CLIPS_PER_STEP,
        num_workers=workers,
        collate_fn=_moments,
    )
    total = torch.zeros(4, dtype=torch.float64)
    with tqdm(total=len(indices), desc="measuring", unit="clip") as progress:
        for moments in loader:
            total += moments
            progress.update(min(_CLIPS_PER_STEP, len(indices) - progress.n))
    clips, frames, value_sum, square_sum = total.tolist()
    if not clips:
        raise UserError(f"{dataset.manifest.path}: none of the {len(indices)} clips drawn can be decoded")
    values = frames * dataset.features.num_mel_bins
    mean = value_sum / values
    std = math.sqrt(max(0.0, square_sum / values - mean**2))
    return {"mean": mean, "std": std, "clips": int(clips), "frames": int(frames), "skipped": len(indices) - int(clips)}


def _moments(items: Sequence[dict[str, Any] | None]) -> Tensor:
    """(4,) float64: clips, real frames, sum and sum of squares of their values."""
    real = [item["source"][: item["length"]].double() for item in items if item is not None]
    sums = [[1.0, len(values), float(values.sum()), float(values.square().sum())] for values in real]
    return torch.tensor(sums, dtype=torch.float64).reshape(-1, 4).sum(dim=0)
