"""What the demo does: its corpus, its trainings, and where they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amae_plugin.demo.words import SPEAKERS, Speaker
from amae_plugin.recipes import override
from amae_plugin.runs.training import Training, recipe_arguments

WORDS = (
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
)
"""Words of Speech Commands that are commands and digits."""
PRETRAINING = "pretrain_audio_mae_tiny"
FINE_TUNING = "finetune_audio_mae_tiny"
MODEL = "amae_audio_mae_tiny"
PRETRAINED, FROM_SCRATCH = "pretrained", "from scratch"


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
        overrides: further Hydra overrides of the pretraining recipe.
        fine_tuning_overrides: further Hydra overrides of the fine-tuning recipe.
        seed: seed of all trainings.
    """

    root: Path
    config_dir: Path
    clips_per_word: int = 100
    words: Sequence[str] = WORDS
    speakers: Sequence[Speaker] = SPEAKERS
    fractions: Mapping[float, int] = field(default_factory=lambda: {1.0: 200, 0.1: 150})
    overrides: Sequence[str] = ("optimization.max_update=1600", "task.probe_interval=400")
    # Hiding three tenths of the time steps, as the recipe does, pays off over 1,600 updates, and holds back 150.
    fine_tuning_overrides: Sequence[str] = ("model.mask_ratio_time=0.1",)
    seed: int = 1

    @property
    def corpus(self) -> Path:
        """Folder of the spoken words, laid out as Speech Commands."""
        return self.root / "words"

    @property
    def manifests(self) -> Path:
        """Folder of ``train.tsv``, ``valid.tsv``, ``test.tsv``, their labels and ``stats.json``."""
        return self.root / "manifests"

    @property
    def probe(self) -> Path:
        """Folder of what `amae probe` finds in the pretrained encoder."""
        return self.root / "probe"

    @property
    def maps(self) -> Path:
        """Folder of the maps of the best classifier's features."""
        return self.root / "map"

    @property
    def accuracies(self) -> Path:
        """File of the classifiers' accuracies."""
        return self.root / "accuracies.json"

    @property
    def page(self) -> Path:
        """Page that tells what the demo did."""
        return self.root / "index.html"

    def training(self, title: str, recipe: str, name: str, updates: int, overrides: Sequence[str]) -> Training:
        """Describe a training by a recipe, in the folder *name*."""
        folder = self.root / name
        arguments = recipe_arguments(recipe, self.config_dir, folder, self.manifests)
        common = ("task.mean=auto", "task.std=auto", f"common.seed={self.seed}")
        return Training(title, [*arguments, *common, *overrides], updates, folder)

    def fine_tunings(self, pretrained: Path) -> dict[tuple[float, str], Training]:
        """Describe the trainings with labels, by fraction of the labels and start.

        For each fraction, the pretrained encoder and the same network from scratch get the same number of updates.
        """
        sizes = [f"model.encoder.{o.removeprefix('model.')}" for o in self.overrides if o.startswith("model.")]
        starts = {
            PRETRAINED: [override("model.pretrained", pretrained)],
            FROM_SCRATCH: ["model.pretrained=null", f"+model@model.encoder={MODEL}", *sizes],
        }
        trainings = {}
        for fraction, updates in self.fractions.items():
            budget = [f"task.label_fraction={fraction}", f"optimization.max_update={updates}"]
            for start, encoder in starts.items():
                title = f"{start}, {fraction:.0%} of the labels"
                name = f"fine-tuning/{start}_{fraction:.0%}".replace(" ", "_").rstrip("%")
                overrides = [*budget, *encoder, *self.fine_tuning_overrides]
                trainings[fraction, start] = self.training(title, FINE_TUNING, name, updates, overrides)
        return trainings
