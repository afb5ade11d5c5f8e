"""Every kind of downstream model is found wherever kinds are told apart."""

from __future__ import annotations

from amae_plugin.evaluation.report import EVALUATIONS
from amae_plugin.inference.model import AUDIO_MODELS
from amae_plugin.models.downstream import DOWNSTREAM


def test_every_downstream_model_has_an_evaluation_and_an_audio_model() -> None:
    assert set(DOWNSTREAM.values()) == set(EVALUATIONS) == set(AUDIO_MODELS)


def test_tasks_and_criterions_are_registered_under_the_names_that_models_give() -> None:
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.models import MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    for name, kind in DOWNSTREAM.items():
        assert issubclass(MODEL_REGISTRY[name], kind)
        assert kind.task in TASK_REGISTRY and kind.task in CRITERION_REGISTRY
