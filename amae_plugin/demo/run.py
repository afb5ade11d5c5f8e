"""The demo: speak a corpus, pretrain a tiny Audio-MAE on it, and measure how well that helps to tell its words apart.

A demo that runs again in the same folder repeats no step that is done.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.figure import Figure

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.corpora import speech_commands
from amae_plugin.corpora.speech_commands import WORDS
from amae_plugin.data.manifest import Manifest
from amae_plugin.data.statistics import read_or_measure
from amae_plugin.demo.words import SPEAKERS, Speaker, make_words
from amae_plugin.errors import UserError
from amae_plugin.evaluation.classification import evaluate
from amae_plugin.evaluation.report import write
from amae_plugin.evaluation.scoring import Options, validation_dataset
from amae_plugin.files import replacing, write_json
from amae_plugin.models.base import PretrainingModel
from amae_plugin.processes import run_program
from amae_plugin.recipe_files import recipe_folder
from amae_plugin.recipes import open_recipe, override
from amae_plugin.runs.statistics import front_end_of
from amae_plugin.runs.training import COMMAND, Training, complete, read_losses, recipe_arguments
from amae_plugin.visual import draw_clips, plot_comparison, plot_loss

PRETRAINING = "pretrain_audio_mae_tiny"
FINE_TUNING = "finetune_audio_mae_tiny"
MODEL = "amae_audio_mae_tiny"
_CLIPS_DRAWN = 5
_PRETRAINED, _FROM_SCRATCH = "pretrained", "from scratch"


@dataclass(frozen=True)
class Demo:
    """Folder and size of the demo; the defaults are those of ``make demo``.

    Attributes:
        root: folder that everything is written to.
        config_dir: folder of the recipes.
        clips_per_word: clips of each word over all splits.
        words: words that are spoken.
        speakers: voices that speak them.
        fractions: updates of training with labels, by the fraction of the labels.
        overrides: further Hydra overrides of the pretraining recipe, such as ``optimization.max_update=20``.
        fine_tuning_overrides: further Hydra overrides of the fine-tuning recipe.
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
        """Folder of the spoken words, laid out as Speech Commands."""
        return self.root / "words"

    @property
    def manifests(self) -> Path:
        """Folder of ``train.tsv``, ``valid.tsv``, ``test.tsv``, their labels and ``stats.json``."""
        return self.root / "manifests"

    def training(self, title: str, recipe: str, name: str, updates: int, overrides: Sequence[str]) -> Training:
        """Describe a training by a recipe, in the folder *name*."""
        folder = self.root / name
        arguments = recipe_arguments(recipe, self.config_dir, folder, self.manifests)
        return Training(title, [*arguments, *overrides], updates, folder)

    def fine_tunings(self, pretrained: Path, statistics: Sequence[str]) -> dict[tuple[float, str], Training]:
        """Describe the trainings with labels, by fraction of the labels and start.

        For each fraction, the pretrained encoder and the same network from scratch get the same number of updates.
        """
        sizes = [f"model.encoder.{o.removeprefix('model.')}" for o in self.overrides if o.startswith("model.")]
        starts = {
            _PRETRAINED: [override("model.pretrained", pretrained)],
            _FROM_SCRATCH: ["model.pretrained=null", f"+model@model.encoder={MODEL}", *sizes],
        }
        trainings = {}
        for fraction, updates in self.fractions.items():
            budget = [f"task.label_fraction={fraction}", f"optimization.max_update={updates}"]
            for start, encoder in starts.items():
                title = f"{start}, {fraction:.0%} of the labels"
                name = f"fine-tuning/{start}_{fraction:.0%}".replace(" ", "_").rstrip("%")
                overrides = [*statistics, *budget, *encoder, *self.fine_tuning_overrides]
                trainings[fraction, start] = self.training(title, FINE_TUNING, name, updates, overrides)
        return trainings


def run(demo: Demo) -> None:
    """Run all steps and print how long each took.

    Raises:
        UserError: a step failed.
    """
    start = time.monotonic()
    with _step(f"1. A corpus: {len(demo.words)} words, spoken by {len(demo.speakers)} voices, in {demo.corpus}"):
        make_words(demo.corpus, demo.clips_per_word, words=demo.words, speakers=demo.speakers)
    with _step(f"2. Manifests, with voices held out that training never hears, and statistics, in {demo.manifests}"):
        written = [demo.manifests / f"{split}.tsv" for split in ("train", "valid", "test")]
        if not _is_newer(written, demo.corpus) or Path(Manifest.read(written[0]).root) != demo.corpus.absolute():
            print(speech_commands.build(demo.corpus, demo.manifests, "v2-35").summary)
        settings = [override("task.data", demo.manifests), *demo.overrides]
        with open_recipe(PRETRAINING, demo.config_dir, settings) as recipe:
            updates, frames = recipe.optimization.max_update, recipe.task.target_length
            front_end = front_end_of(recipe.model)
        mean, std = read_or_measure(written[0], front_end, frames, demo.manifests / "stats.json")
        print(f"log-mel values: mean {mean:.3f}, standard deviation {std:.3f}")
    statistics = [f"task.mean={mean:.4f}", f"task.std={std:.4f}"]
    overrides = [*statistics, *demo.overrides]
    pretraining = demo.training("pretraining", PRETRAINING, "pretraining", updates, overrides)
    with _step(f"3. Pretraining, by the recipe {demo.config_dir / PRETRAINING}.yaml, in {pretraining.folder}"):
        complete([pretraining])
        for name, points in read_losses(pretraining.log).items():
            if points:
                (first, first_loss), (last, last_loss) = points[0], points[-1]
                print(f"{name} loss: {first_loss:.3f} after {first:,.0f} updates, {last_loss:.3f} after {last:,.0f}")
    with _step("4. Pictures"):
        _draw(demo, pretraining)
    against = "the pretrained encoder against the same network from scratch, with the same number of updates"
    with _step(f"5. Telling the words apart, by the recipe {demo.config_dir / FINE_TUNING}.yaml: {against}"):
        fine_tunings = demo.fine_tunings(pretraining.checkpoint, statistics)
        complete(list(fine_tunings.values()))
        accuracies = _evaluate(demo, fine_tunings)
        print(f"accuracy on unheard voices   {_PRETRAINED:>14}{_FROM_SCRATCH:>14}")
        for labels, row in accuracies.items():
            print(f"  {labels:26} {row[_PRETRAINED]:14.1%}{row[_FROM_SCRATCH]:14.1%}")
    best = fine_tunings[max(demo.fractions), _PRETRAINED]
    print(f"""
Done in {time.monotonic() - start:,.0f} seconds.
  {demo.root / "loss.png"}            the loss of pretraining
  {demo.root / "reconstruction.png"}  held-out clips: as they are, as the encoder saw them, as the model filled them in
  {demo.root / "accuracy.png"}        pretrained against from scratch
  {best.folder / "evaluation"}  which words were mistaken for which
  {pretraining.checkpoint}  the pretrained model
  {best.checkpoint}  the classifier
  {shlex.join(["tensorboard", "--logdir", str(demo.root)])}  the same and more, if TensorBoard is installed

Next, the same on a folder of your own recordings, of any length and format:
  {shlex.join(["source", str(Path(sys.prefix) / "bin" / "activate")])}
  amae manifest folder /your/recordings --out manifests/mine
  amae stats manifests/mine --recipe pretrain_audio_mae_tiny
  {shlex.join([COMMAND, "--config-dir", str(demo.config_dir)])} --config-name pretrain_audio_mae_tiny \\
    task.data=manifests/mine task.mean=... task.std=...   (as amae stats printed them)""")


def _draw(demo: Demo, pretraining: Training) -> None:
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
    paths = [Path(dataset.manifest.name(clip)) for clip in clips]
    names = [f"{path.parent.name}, voice {path.name.split('_')[0]}" for path in paths]
    _save(draw_clips(cast(PretrainingModel, checkpoint.model()), dataset, clips, names), reconstruction)


def _evaluate(demo: Demo, fine_tunings: Mapping[tuple[float, str], Training]) -> dict[str, dict[str, float]]:
    """Measure the accuracies on the voices of the test split, by labels and start, and draw ``accuracy.png``."""
    figures, picture = demo.root / "accuracy.json", demo.root / "accuracy.png"
    if all(_is_newer([figures, picture], training.checkpoint) for training in fine_tunings.values()):
        return json.loads(figures.read_text())
    accuracies: dict[str, dict[str, float]] = {}
    for (fraction, start), training in fine_tunings.items():
        result = evaluate(training.checkpoint, demo.manifests, "test", Options(progress=False))
        write(result, training.folder / "evaluation" / "test")
        accuracies.setdefault(f"{fraction:.0%} of the labels", {})[start] = result.headline["accuracy"]
    title = f"{len(demo.words)} words, voices never heard in training"
    _save(plot_comparison(accuracies, ylabel="accuracy", title=title, chance=1 / len(demo.words)), picture)
    write_json(figures, accuracies)
    return accuracies


@contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"\n{title}", flush=True)
    start = time.monotonic()
    yield
    print(f"-- {time.monotonic() - start:.0f} s", flush=True)


def _is_newer(files: Sequence[Path], source: Path) -> bool:
    return all(file.exists() and file.stat().st_mtime >= source.stat().st_mtime for file in files)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m amae_plugin.demo", description="Pretrain a tiny Audio-MAE.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (%(default)s)")
    parser.add_argument("--config-dir", type=Path, default=recipe_folder(), help="folder of the recipes (%(default)s)")
    args = parser.parse_args(argv)

    def work() -> None:
        if not (args.config_dir / f"{PRETRAINING}.yaml").is_file():
            raise UserError(f"{args.config_dir} holds no {PRETRAINING}.yaml: run this from the root of the repository")
        run(Demo(args.out, args.config_dir))

    return run_program("demo", work, "the same command continues from here")
