"""``fairseq-train`` and ``fairseq-validate``, which make options of the settings, know the tasks and the models."""

from __future__ import annotations

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import version
from omegaconf import OmegaConf

import amae_plugin.fairseq_plugin  # noqa: F401 - registers them
from amae_plugin.models.registry import SYSTEMS

TASKS = {
    "amae_pretraining": [(name, "amae_masked_prediction") for name in SYSTEMS],
    "amae_classification": [("amae_classifier", "amae_classification")],
    "amae_ctc": [("amae_ctc", "amae_ctc")],
}
CASES = [(task, model, criterion) for task, models in TASKS.items() for model, criterion in models]


def test_all_tasks_and_models_are_tried() -> None:
    names = {name for registry in (TASK_DATACLASS_REGISTRY, MODEL_DATACLASS_REGISTRY) for name in registry}
    assert {name for name in names if name.startswith("amae_")} == {name for case in CASES for name in case[:2]}


@pytest.mark.parametrize(("task", "model", "criterion"), CASES)
def test_options_become_settings(task: str, model: str, criterion: str) -> None:
    version.setbase("1.1")  # of fairseq-train's process, where nothing has asked Hydra for a later one
    given = ["--task", task, "--arch", model, "--criterion", criterion, "--optimizer", "amae_adamw"]
    given += ["--lr-scheduler", "amae_cosine", "--batch-size", "8", "--augmentations", "roll,magnitude", "--bf16"]
    arguments = options.parse_args_and_arch(options.get_training_parser(), ["manifests", *given])
    cfg = convert_namespace_to_omegaconf(arguments)
    assert (cfg.task._name, cfg.model._name, cfg.criterion._name) == (task, model, criterion)
    assert (cfg.task.data, cfg.task.augmentations, cfg.dataset.batch_size) == ("manifests", "roll,magnitude", 8)
    defaults = OmegaConf.to_container(OmegaConf.structured(MODEL_DATACLASS_REGISTRY[model]), resolve=False)
    for name in ("depth", "mask_ratio", "pooling"):
        assert cfg.model.get(name) == defaults.get(name)
    assert task != "amae_pretraining" or cfg.model.speech.mask_prob == 0.65
