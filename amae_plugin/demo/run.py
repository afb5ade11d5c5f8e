"""The demo: speak a corpus, pretrain a tiny Audio-MAE on it, and see what that is worth for telling its words apart.

What is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.corpora import speech_commands
from amae_plugin.corpora.speech_commands import WORDS
from amae_plugin.data.manifest import Manifest
from amae_plugin.demo.words import SPEAKERS, Speaker, make_words
from amae_plugin.errors import UserError
from amae_plugin.evaluation.classification import evaluate
from amae_plugin.evaluation.report import write
from amae_plugin.evaluation.scoring import Options, validation_dataset
from amae_plugin.models.base import PretrainingModel
from amae_plugin.runs.statistics import statistics_of
from amae_plugin.runs.training import COMMAND, Training, complete, read_losses, write_json
from amae_plugin.visual import draw_clips, plot_comparison, plot_loss

PRETRAINING = "pretrain_audio_mae_tiny"
FINE_TUNING = "finetune_audio_mae_tiny"
MODEL = "amae_audio_mae_tiny"
_CLIPS_DRAWN = 5
_PRETRAINED, _FROM_SCRATCH = "pretrained", "from scratch"


@dataclass(frozen=True)
class Demo:
    """Where the demo lies and how large it is; the defaults are those of ``make demo``.

    Attributes:
        root: everything is written here.
        config_dir: folder of the recipes.
        clips_per_word: of the corpus, over all splits.
        words: that are spoken.
        speakers: who speak them.
        fractions: of the labels, and for how many updates the network is trained with them.
        overrides: further Hydra overrides of the pretraining recipe, such as ``optimization.max_update=20``.
        fine_tuning_overrides: the same of the fine-tuning recipe.
    """

    root: Path
    config_dir: Path
    clips_per_word: int = 100
    words: Sequence[str] = WORDS
    speakers: Sequence[Speaker] = SPEAKERS
    fractions: Mapping[float, int] = field(default_factory=lambda: {1.0: 600, 0.1: 300})
    overrides: Sequence[str] = ()
    fine_tuning_overrides: Sequence[str] = ()

    @property
    def corpus(self) -> Path:
        """Speech-Commands-shaped folder of spoken words."""
        return self.root / "words"

    @property
    def manifests(self) -> Path:
        """Folder of ``train.tsv``, ``valid.tsv``, ``test.tsv``, their labels and ``stats.json``."""
        return self.root / "manifests"

    def pretraining(self, mean: float, std: float) -> Training:
        """The pretraining; ``mean`` and ``std`` are those of the corpus."""
        folder = self.root / "pretraining"
        arguments = [*self._arguments(PRETRAINING, folder, mean, std), *self.overrides]
        return Training("pretraining", arguments, _updates(self.config_dir, PRETRAINING, self.overrides), folder)

    def fine_tuning(self, start: str, fraction: float, mean: float, std: float) -> Training:
        """The training of a classifier from the pretrained encoder or from scratch, with a part of the labels."""
        folder = self.root / "fine-tuning" / f"{start} {fraction:.0%}".replace(" ", "_").replace("%", "")
        updates = self.fractions[fraction]
        arguments = [
            *self._arguments(FINE_TUNING, folder, mean, std),
            f"task.label_fraction={fraction}",
            f"optimization.max_update={updates}",
            *self.fine_tuning_overrides,
        ]
        if start == _PRETRAINED:
            arguments += [f"model.pretrained={self.root / 'pretraining' / 'checkpoints' / 'checkpoint_last.pt'}"]
        else:
            # The very network that was pretrained.
            sizes = [f"model.encoder.{o.removeprefix('model.')}" for o in self.overrides if o.startswith("model.")]
            arguments += ["model.pretrained=null", f"+model@model.encoder={MODEL}", *sizes]
        return Training(f"{start}, {fraction:.0%} of the labels", arguments, updates, folder)

    def _arguments(self, recipe: str, folder: Path, mean: float, std: float) -> list[str]:
        return [
            "--config-dir",
            str(self.config_dir),
            "--config-name",
            recipe,
            f"task.data={self.manifests}",
            f"task.mean={mean:.4f}",
            f"task.std={std:.4f}",
            f"hydra.run.dir={folder}",
            # The recipe's batch is for one device.
            "distributed_training.distributed_world_size=1",
        ]


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
    """Mean and standard deviation of the training clips' log-mel values."""
    frames = int(OmegaConf.load(demo.config_dir / f"{PRETRAINING}.yaml").task.target_length)
    return statistics_of(demo.manifests / "train.tsv", frames, demo.manifests / "stats.json")


def draw(demo: Demo, pretraining: Training) -> None:
    """Draw ``loss.png`` and, for held-out clips of different words, ``reconstruction.png``."""
    losses, reconstruction = demo.root / "loss.png", demo.root / "reconstruction.png"
    if _is_newer([losses, reconstruction], pretraining.checkpoint):
        return
    _save(plot_loss(read_losses(pretraining.log), title="Pretraining of a tiny Audio-MAE on spoken words"), losses)
    checkpoint = Checkpoint.read(pretraining.checkpoint)
    dataset = validation_dataset(checkpoint, Manifest.read(demo.manifests / "valid.tsv"))
    # Clips of full length, far apart in a manifest that is sorted by word.
    full = np.flatnonzero(dataset.manifest.sizes == dataset.manifest.sizes.max())
    clips = full[np.linspace(0, len(full) - 1, 2 * _CLIPS_DRAWN + 1).round().astype(int)[1::2]].tolist()
    names = [_clip_name(dataset.manifest.name(clip)) for clip in clips]
    _save(draw_clips(cast(PretrainingModel, checkpoint.model()), dataset, clips, names), reconstruction)


def compare(demo: Demo, mean: float, std: float) -> dict[str, dict[str, float]]:
    """Fine-tune the pretrained encoder, and train the same network from scratch with the same budget.

    Returns:
        Accuracy on the voices of the test split, by share of the labels and by start.
    """
    trainings = {
        (fraction, start): demo.fine_tuning(start, fraction, mean, std)
        for fraction in demo.fractions
        for start in (_PRETRAINED, _FROM_SCRATCH)
    }
    complete(list(trainings.values()))
    figures, picture = demo.root / "accuracy.json", demo.root / "accuracy.png"
    if all(_is_newer([figures, picture], training.checkpoint) for training in trainings.values()):
        return json.loads(figures.read_text())
    accuracies: dict[str, dict[str, float]] = {}
    for (fraction, start), training in trainings.items():
        result = evaluate(training.checkpoint, demo.manifests, "test", Options(progress=False))
        write(result, training.folder / "evaluation" / "test")
        accuracies.setdefault(f"{fraction:.0%} of the labels", {})[start] = result.headline["accuracy"]
    title = f"{len(demo.words)} words, voices never heard in training"
    chance = 1 / len(demo.words)
    _save(plot_comparison(accuracies, ylabel="accuracy", title=title, chance=chance), picture)
    write_json(figures, accuracies)
    return accuracies


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
    pretraining = demo.pretraining(mean, std)
    with _step(f"3. Pretraining, by the recipe {demo.config_dir / PRETRAINING}.yaml, in {pretraining.folder}"):
        complete([pretraining])
        for name, points in read_losses(pretraining.log).items():
            if points:
                (first, first_loss), (last, last_loss) = points[0], points[-1]
                print(f"{name} loss: {first_loss:.3f} after {first:,.0f} updates, {last_loss:.3f} after {last:,.0f}")
    with _step("4. Pictures"):
        draw(demo, pretraining)
    with _step(
        f"5. Telling the words apart, by the recipe {demo.config_dir / FINE_TUNING}.yaml: the pretrained encoder "
        "against the same network from scratch, with the same number of updates"
    ):
        accuracies = compare(demo, mean, std)
        width = max(map(len, accuracies))
        print(f"accuracy on unheard voices   {_PRETRAINED:>14}{_FROM_SCRATCH:>14}")
        for labels, row in accuracies.items():
            print(f"  {labels:{max(width, 26)}} {row[_PRETRAINED]:14.1%}{row[_FROM_SCRATCH]:14.1%}")
    best = demo.fine_tuning(_PRETRAINED, max(demo.fractions), mean, std)
    print(f"""
Done in {time.monotonic() - start:,.0f} seconds.
  {demo.root / "loss.png"}            how the loss of pretraining fell
  {demo.root / "reconstruction.png"}  held-out clips: as they are, as the encoder saw them, as the model filled them in
  {demo.root / "accuracy.png"}        pretrained against from scratch
  {best.folder / "evaluation"}  which words were mistaken for which
  {pretraining.checkpoint}  the pretrained model
  {best.checkpoint}  the classifier
  tensorboard --logdir {demo.root}  the same and more, if TensorBoard is installed

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
        if not (args.config_dir / f"{PRETRAINING}.yaml").is_file():
            raise UserError(f"{args.config_dir} holds no {PRETRAINING}.yaml: run this from the root of the repository")
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


def _updates(config_dir: Path, recipe: str, overrides: Sequence[str]) -> int:
    settings = OmegaConf.merge(OmegaConf.load(config_dir / f"{recipe}.yaml"), OmegaConf.from_dotlist(list(overrides)))
    return int(settings.optimization.max_update)


def _clip_name(path: str) -> str:
    word, file = Path(path).parts[-2:]
    return f"{word}, voice {file.split('_')[0]}"


def _is_newer(files: Sequence[Path], source: Path) -> bool:
    return all(file.exists() and file.stat().st_mtime >= source.stat().st_mtime for file in files)


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    partial.replace(path)
