"""The demo: speak a corpus, pretrain a tiny Audio-MAE, draw what it learned. What is done already is not done again."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from amae_plugin.cli.stats import measure
from amae_plugin.corpora import speech_commands
from amae_plugin.corpora.spoken_words import WORDS
from amae_plugin.data.dataset import AudioDataset
from amae_plugin.data.manifest import Manifest
from amae_plugin.demo.training import COMMAND, read_losses, train
from amae_plugin.demo.words import SPEAKERS, Speaker, make_words
from amae_plugin.errors import UserError
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.visual import draw_clips, plot_loss

RECIPE = "pretrain_audio_mae_tiny"
_CLIPS_DRAWN = 5


@dataclass(frozen=True)
class Demo:
    """Where the demo lies and how large it is; the defaults are those of ``make demo``.

    Attributes:
        root: everything is written here.
        config_dir: folder of the recipes.
        clips_per_word: of the corpus, over all splits.
        words: that are spoken.
        speakers: who speak them.
        overrides: further Hydra overrides of the recipe, such as ``optimization.max_update=20``.
    """

    root: Path
    config_dir: Path
    clips_per_word: int = 100
    words: Sequence[str] = WORDS
    speakers: Sequence[Speaker] = SPEAKERS
    overrides: Sequence[str] = ()

    @property
    def corpus(self) -> Path:
        """Speech-Commands-shaped folder of spoken words."""
        return self.root / "words"

    @property
    def manifests(self) -> Path:
        """Folder of ``train.tsv``, ``valid.tsv``, ``test.tsv``, their labels and ``stats.json``."""
        return self.root / "manifests"

    @property
    def pretraining(self) -> Path:
        """Folder of the training run."""
        return self.root / "pretraining"

    @property
    def log(self) -> Path:
        """What the training printed."""
        return self.pretraining / "output.log"

    @property
    def checkpoint(self) -> Path:
        """The pretrained model."""
        return self.pretraining / "checkpoints" / "checkpoint_last.pt"


def make_corpus(demo: Demo) -> None:
    """Speak the words, or find them spoken."""
    make_words(demo.corpus, demo.clips_per_word, words=demo.words, speakers=demo.speakers)


def write_manifests(demo: Demo) -> None:
    """Write the manifests of the corpus, its held-out voices in ``valid`` and ``test``."""
    written = [demo.manifests / f"{split}.tsv" for split in ("train", "valid", "test")]
    if _is_newer(written, demo.corpus) and Path(Manifest.read(written[0]).root) == demo.corpus.absolute():
        return
    print(speech_commands.build(demo.corpus, demo.manifests, "v2-35").summary)


def measure_statistics(demo: Demo) -> tuple[float, float]:
    """Mean and standard deviation of the training clips' log-mel values, as ``amae stats`` computes them."""
    path = demo.manifests / "stats.json"
    train_manifest = demo.manifests / "train.tsv"
    if not _is_newer([path], train_manifest):
        manifest = Manifest.read(train_manifest)
        frames = int(OmegaConf.load(demo.config_dir / f"{RECIPE}.yaml").task.target_length)
        # mean 0 and std 1/2 leave the features as they are.
        dataset = AudioDataset(manifest, target_length=frames, mean=0.0, std=0.5)
        _write(path, measure(dataset, np.arange(len(manifest)).tolist(), workers=os.cpu_count() or 1))
    figures = json.loads(path.read_text())
    return figures["mean"], figures["std"]


def pretrain(demo: Demo, mean: float, std: float) -> None:
    """Pretrain by the recipe; an interrupted training goes on from its last checkpoint.

    Raises:
        UserError: the training failed, or the folder holds a training with other settings.
    """
    arguments = [
        "--config-dir",
        str(demo.config_dir),
        "--config-name",
        RECIPE,
        f"task.data={demo.manifests}",
        f"task.mean={mean:.4f}",
        f"task.std={std:.4f}",
        f"hydra.run.dir={demo.pretraining}",
        # The recipe's batch is for one device.
        "distributed_training.distributed_world_size=1",
        *demo.overrides,
    ]
    settings = demo.pretraining / "settings.json"
    if settings.exists():
        found = json.loads(settings.read_text())
        if found["arguments"] != arguments:
            raise UserError(f"{demo.pretraining} holds a training with other settings: delete it to train anew")
        if found["done"]:
            return
    demo.pretraining.mkdir(parents=True, exist_ok=True)
    _write(settings, {"done": False, "arguments": arguments})
    print(f"{COMMAND} {' '.join(arguments)}")
    train(arguments, _updates(demo), demo.log, "pretraining")
    _write(settings, {"done": True, "arguments": arguments})


def draw(demo: Demo) -> None:
    """Draw ``loss.png`` and, for held-out clips of different words, ``reconstruction.png``."""
    losses, reconstruction = demo.root / "loss.png", demo.root / "reconstruction.png"
    if _is_newer([losses, reconstruction], demo.checkpoint):
        return
    _save(plot_loss(read_losses(demo.log), title="Pretraining of a tiny Audio-MAE on spoken words"), losses)
    state = torch.load(demo.checkpoint, map_location="cpu", weights_only=False)
    task = state["cfg"]["task"]
    model = AudioMAE(AudioMAEConfig.from_settings(state["cfg"]["model"]))
    model.load_state_dict(state["model"])
    dataset = AudioDataset(
        Manifest.read(demo.manifests / "valid.tsv"),
        target_length=task["target_length"],
        mean=task["mean"],
        std=task["std"],
    )
    # Clips of full length, far apart in a manifest that is sorted by word.
    full = np.flatnonzero(dataset.manifest.sizes == dataset.manifest.sizes.max())
    clips = full[np.linspace(0, len(full) - 1, 2 * _CLIPS_DRAWN + 1).round().astype(int)[1::2]].tolist()
    names = [_clip_name(dataset.manifest.name(clip)) for clip in clips]
    _save(draw_clips(model, dataset, clips, names), reconstruction)


def run(demo: Demo) -> None:
    """All steps, each with its time.

    Raises:
        UserError: a step failed.
    """
    start = time.monotonic()
    with _step(f"1. A corpus: {len(demo.words)} words, spoken by {len(demo.speakers)} voices, in {demo.corpus}"):
        make_corpus(demo)
    with _step(f"2. Manifests, with voices held out that training never hears, and statistics, in {demo.manifests}"):
        write_manifests(demo)
        mean, std = measure_statistics(demo)
        print(f"log-mel values: mean {mean:.3f}, standard deviation {std:.3f}")
    with _step(f"3. Pretraining, by the recipe {demo.config_dir / RECIPE}.yaml, in {demo.pretraining}"):
        pretrain(demo, mean, std)
        for name, points in read_losses(demo.log).items():
            if points:
                (first, first_loss), (last, last_loss) = points[0], points[-1]
                print(f"{name} loss: {first_loss:.3f} after {first:,.0f} updates, {last_loss:.3f} after {last:,.0f}")
    with _step("4. Pictures"):
        draw(demo)
    print(f"""
Done in {time.monotonic() - start:,.0f} seconds.
  {demo.root / "loss.png"}            how the loss fell
  {demo.root / "reconstruction.png"}  held-out clips: as they are, as the encoder saw them, as the model filled them in
  {demo.checkpoint}  the model
  tensorboard --logdir {demo.pretraining / "tensorboard"}  the same and more, if TensorBoard is installed

Next, the same on a folder of your own recordings, of any length and format:
  source {Path(sys.prefix) / "bin" / "activate"}
  amae manifest folder /your/recordings --out manifests/mine
  amae stats manifests/mine
  {COMMAND} --config-dir {demo.config_dir} --config-name pretrain_audio_mae_small task.data=manifests/mine \\
    task.mean=... task.std=...   (as amae stats printed them)""")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m amae_plugin.demo", description="Pretrain a tiny Audio-MAE.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (%(default)s)")
    parser.add_argument("--config-dir", type=Path, default=Path("config"), help="the recipes (%(default)s)")
    args = parser.parse_args(argv)
    try:
        if not (args.config_dir / f"{RECIPE}.yaml").is_file():
            raise UserError(f"{args.config_dir} holds no {RECIPE}.yaml: run this from the root of the repository")
        run(Demo(args.out, args.config_dir))
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"\n{title}", flush=True)
    start = time.monotonic()
    yield
    print(f"-- {time.monotonic() - start:.0f} s", flush=True)


def _updates(demo: Demo) -> int:
    overridden = OmegaConf.from_dotlist(list(demo.overrides))
    recipe = OmegaConf.load(demo.config_dir / f"{RECIPE}.yaml")
    return int(OmegaConf.merge(recipe, overridden).optimization.max_update)


def _clip_name(path: str) -> str:
    word, file = Path(path).parts[-2:]
    return f"{word}, voice {file.split('_')[0]}"


def _is_newer(files: Sequence[Path], source: Path) -> bool:
    return all(file.exists() and file.stat().st_mtime >= source.stat().st_mtime for file in files)


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    partial.replace(path)


def _write(path: Path, values: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)
