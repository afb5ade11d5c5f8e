"""Features of HuBERT's form: the files from which fairseq's k-means makes units (examples/hubert/simple_kmeans)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from amae_plugin.data.manifest import Clip, Manifest
from amae_plugin.errors import UserError
from amae_plugin.files import replacing, try_folder, writing
from amae_plugin.inference.clips import load_all
from amae_plugin.inference.model import AudioModel
from amae_plugin.progress import tqdm


@dataclass(frozen=True)
class HubertShard:
    """Part of a manifest's clips, in its order.

    Attributes:
        manifest: manifest.
        rank: number of the part.
        shards: number of parts.
        start: first clip.
        end: clip after the last one.
    """

    manifest: Manifest
    rank: int
    shards: int
    start: int
    end: int

    @classmethod
    def of(cls, path: str | os.PathLike[str], rank: int, shards: int) -> HubertShard:
        """Cut a manifest as fairseq's scripts do.

        Raises:
            UserError: the manifest cannot be read, or the shard is empty.
        """
        manifest = Manifest.read(path).require_clips()
        start, end = (round(len(manifest) / shards * edge) for edge in (rank, rank + 1))
        if start == end:
            raise UserError(f"{path}: shard {rank} of {shards} is empty, as there are {len(manifest):,} clips")
        return cls(manifest, rank, shards, start, end)

    @property
    def name(self) -> str:
        """Name of the files, without the extension."""
        return f"{self.manifest.path.stem}_{self.rank}_{self.shards}"

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: int) -> Clip:
        return self.manifest[self.start + index]

    def write(self, folder: Path, model: AudioModel, layer: int, workers: int = 0) -> int:
        """Write the time steps of a layer, ``.npy`` (T, D) float32, and their number in each clip, ``.len``.

        Args:
            folder: folder of the files.
            model: model.
            layer: number of the layer, see :meth:`AudioModel.extract_features`.
            workers: number of processes that decode; with 0, this one does.

        Returns:
            T, the time steps of all clips of the shard.

        Raises:
            UserError: a clip cannot be decoded (its line of units would be missing), the layer does not exist, or the
                files cannot be written.
        """
        model.require_layer(layer)
        try_folder(folder)
        lengths = []
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / f"{self.name}.npy") as partial, partial.open("wb") as file:
                _write_header(file, 0, model.embed_dim)
                for steps in self._steps(model, layer, workers):
                    lengths.append(len(steps))
                    file.write(steps.tobytes())
                file.seek(0)
                _write_header(file, sum(lengths), model.embed_dim)
            with replacing(folder / f"{self.name}.len") as partial:
                partial.write_text("".join(f"{length}\n" for length in lengths), encoding="utf-8")
        return sum(lengths)

    def _steps(self, model: AudioModel, layer: int, workers: int) -> Iterator[np.ndarray]:
        waveforms = load_all(self, model.sample_rate, workers)
        with torch.inference_mode():
            for states, _ in tqdm(model.encode(waveforms), desc=self.name, total=len(self), unit="clip"):
                yield states[layer].float().cpu().numpy()


def _write_header(file: BinaryIO, rows: int, columns: int) -> None:
    """Write the header of an array (rows, columns) float32, in which NumPy leaves room for any number of rows."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
    np.lib.format.write_array_header_1_0(file, header)
