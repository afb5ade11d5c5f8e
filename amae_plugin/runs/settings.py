"""Settings of a comparison, which read without PyTorch what the command line says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

from amae_plugin.errors import UserError
from amae_plugin.recipe_files import recipe_folder


@dataclass(frozen=True)
class Comparison:
    """Settings of a comparison; the same comparison run again continues where it stopped.

    Attributes:
        pretraining: folder of the manifests ``train`` and ``valid`` for all pretraining.
        fine_tuning: folder of the labelled manifests ``train``, ``valid`` and ``test`` for all fine-tuning.
        root: folder for all results.
        config_dir: folder of the recipes.
        minutes: time of each pretraining.
        updates: length of each fine-tuning; with 0, nothing is fine-tuned.
        fractions: shares of the labels; each contestant is fine-tuned with each.
        systems: names of the contestants; empty: all.
        seeds: random seeds; each contestant is trained with each.
        overrides: Hydra overrides of every pretraining.
        fine_tuning_overrides: Hydra overrides of every fine-tuning.
        formats: formats of the picture.
        width: width of the picture, see :data:`~amae_plugin.visual.style.Width`.
    """

    pretraining: Path
    fine_tuning: Path
    root: Path
    config_dir: Path = field(default_factory=recipe_folder)
    minutes: float = 10.0
    updates: int = 800
    fractions: Sequence[float] = (1.0, 0.1)
    systems: Sequence[str] = ()
    seeds: Sequence[int] = (1,)
    overrides: Sequence[str] = ()
    fine_tuning_overrides: Sequence[str] = ()
    formats: Sequence[str] = ("png",)
    width: Optional[Literal["column", "page"]] = None

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.updates < 0:
            raise UserError("--minutes must be above 0 and --updates 0 or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: must be different numbers, one or more")
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise UserError("--fractions must be above 0 and at most 1")
        for folder, splits in ((self.pretraining, ("train", "valid")), (self.fine_tuning, ("train", "valid", "test"))):
            missing = [f"{split}.tsv" for split in splits if not (folder / f"{split}.tsv").is_file()]
            if missing:
                raise UserError(f"{folder}: has no {', '.join(missing)}; amae manifest makes them")
