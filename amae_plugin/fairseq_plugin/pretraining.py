"""Pretraining on the audio of a manifest: task, criterion, and the registered systems."""

# No `from __future__ import annotations`: fairseq reads the annotations of dataclass fields as objects.
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.models import register_model
from fairseq.optim import FairseqOptimizer
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, DictConfig
from tensorboardX import SummaryWriter
from torch import Tensor, nn

from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.audio_task import AudioTask, AudioTaskConfig
from amae_plugin.fairseq_plugin.bases import SummedCriterion, TrainedModel, Values, plain_module
from amae_plugin.fairseq_plugin.probing import Probing, ProbingConfig
from amae_plugin.fairseq_plugin.speech import SpeechConfig, SpeechEncoder
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.models.base import PretrainingModel, summed_losses
from amae_plugin.models.cav_mae import CAVMAE, CAVMAEConfig
from amae_plugin.models.eat import EAT, EATConfig
from amae_plugin.models.m2d import M2D, M2DConfig
from amae_plugin.models.mae_ast import MAEAST, MAEASTConfig
from amae_plugin.models.registry import find_system
from amae_plugin.models.settings import setting
from amae_plugin.models.ssast import SSAST, SSASTConfig

logger = logging.getLogger(__name__)

MIN_TARGET_VARIANCE = 1e-3
"""Variance of a teacher's features over tokens below which training has collapsed."""
_VARIANCE = "target_variance"
_SIMILARITY = "target_similarity"


@dataclass
class AmaePretrainingConfig(AudioTaskConfig, ProbingConfig):
    """Data and features of pretraining."""

    score_padding: bool = setting(True, "hidden patches beyond a clip's end count in the loss (as published)")
    picture_interval: int = setting(0, "updates between TensorBoard pictures, the last update's among them; 0: none")
    pictures: int = setting(4, "validation clips on a picture")
    max_update: int = II("oc.select:optimization.max_update,0")
    valid_subset: str = II("dataset.valid_subset")


@register_task("amae_pretraining", dataclass=AmaePretrainingConfig)
class AmaePretraining(AudioTask):
    """Masked-autoencoder pretraining on unlabelled audio."""

    takes = ("audio", "image")
    _writer: Optional[SummaryWriter] = None
    _draws = False
    _probing: Optional[Probing] = None

    def build_model(self, cfg: DictConfig, from_checkpoint: bool = False) -> nn.Module:
        """Build the model, and note what input its system expects.

        fairseq fills in the settings of a checkpoint that lacks some; how its input was made must be in the file.
        """
        if not from_checkpoint:
            modalities = self.choose_modalities(cfg, default=find_system(cfg).encoder_class.modalities)
            if "audio" not in modalities:
                raise UserError(
                    f"task.modalities={','.join(modalities)}: pretraining needs audio, with or without image"
                )
            if "modalities" in cfg:
                cfg.modalities = list(modalities)
        self.default_input = find_system(cfg).input(cfg)
        settings = dict(cfg) if from_checkpoint else {**cfg, "speech": None}
        model = super().build_model(cfg, from_checkpoint)
        in_file = self._section_of_run("task") if from_checkpoint else None
        model.prepare_speech(cfg, settings, self.cfg if in_file is None else in_file)
        if cfg.get("imagenet") and not from_checkpoint:
            self.load_image_weights(model, cfg, cfg.imagenet)
        if not from_checkpoint:
            names = ("loss", *(f"loss_{name}" for name in model.loss_weights))
            self.check_best_metric(dict.fromkeys(names, False), "in pretraining")
            self._probing = Probing(self.cfg, self.data, cfg) if Probing.wanted(self.cfg) else None
        self._draws = self.cfg.picture_interval > 0 and model.draws
        if self.cfg.picture_interval and not model.draws and not from_checkpoint:
            logger.info("task.picture_interval: no pictures, since the model's objectives predict no spectrogram")
        return model

    def load_dataset(self, split: str, combine: bool = False, **kwargs: object) -> None:
        """Load ``<split>.tsv``; with the training clips also those that pictures show, if a run does not validate."""
        self.make_dataset(self.read_manifest(split), split)
        shown = self.cfg.valid_subset.split(",")[0]
        if self._draws and shown not in self.datasets:
            self.load_dataset(shown)

    def train_step(
        self,
        sample: Values,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: FairseqOptimizer,
        update_num: int,
        ignore_grad: bool = False,
    ) -> Any:
        """Run fairseq's step; before the first one, probe the model if the run probes it."""
        if self._probing is not None:
            self._probing.before_first(plain_module(model, PretrainingModel), update_num)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def optimizer_step(self, optimizer: FairseqOptimizer, model: nn.Module, update_num: int) -> None:
        """Step, let the model do what follows a step, and probe it and draw a picture when it is time."""
        scale, update = _loss_scale(optimizer), update_num + 1
        super().optimizer_step(optimizer, model, update_num)
        plain = plain_module(model, PretrainingModel)
        if _loss_scale(optimizer) >= scale:
            plain.after_update(update, self.cfg.max_update)
        if self._probing is not None:
            self._probing.after(plain, update)
        due = self._draws and (update % self.cfg.picture_interval == 0 or update == self.cfg.max_update)
        if due and self.cfg.tensorboard_logdir and distributed_utils.get_global_rank() == 0:
            try:
                self.draw_pictures(plain, update)
            except Exception:  # whatever it is, it must not cost the run
                logger.exception(f"no picture after update {update}; training goes on")

    def get_checkpoint_dict(self) -> Dict[str, Any]:
        """Have checkpoints keep the time by which the run probes its model as well."""
        state = super().get_checkpoint_dict()
        if self._probing is not None:
            state[type(self).__name__]["seconds"] = self._probing.seconds
        return state

    def set_checkpoint_dict(self, state: Dict[str, float]) -> None:
        """Continue that time, and early stopping."""
        rest = dict(state)
        seconds = rest.pop("seconds", None)
        if self._probing is not None and seconds is not None:
            self._probing.seconds = seconds
        super().set_checkpoint_dict(rest)

    def draw_pictures(self, model: PretrainingModel, update: int) -> None:
        """Write a picture of fixed validation clips, reconstructed, to TensorBoard."""
        # matplotlib takes a second to import: only runs that draw pay for it.
        from amae_plugin.visual import draw_clips

        dataset = replace(self.datasets[self.cfg.valid_subset.split(",")[0]].dataset, features="workers")
        step = max(1, len(dataset) // self.cfg.pictures)
        clips = list(range(0, len(dataset), step))[: self.cfg.pictures]
        with torch.compiler.set_stance("force_eager"):
            figure = draw_clips(model, dataset, clips)
        if self._writer is None:
            self._writer = SummaryWriter(str(Path(self.cfg.tensorboard_logdir) / "pictures"))
        self._writer.add_figure("reconstruction", figure, global_step=update, close=False)
        self._writer.flush()


@dataclass
class AmaeMaskedPredictionConfig(FairseqDataclass):
    """Setting that :class:`AmaeMaskedPrediction` takes from the task."""

    score_padding: bool = II("task.score_padding")


@register_criterion("amae_masked_prediction", dataclass=AmaeMaskedPredictionConfig)
class AmaeMaskedPrediction(SummedCriterion):
    """The objectives of a pretraining model, summed over hidden tokens and weighted as the model says.

    Each objective is logged without its weight as well: ``loss_reconstruction``, ``loss_info_nce``. A model that learns
    from its own features also logs ``target_variance``, and training stops when they are the same everywhere; and
    ``target_similarity``, the mean cosine of its predictions and its teacher's features of scored tokens.
    """

    def __init__(self, task: FairseqTask, score_padding: bool):
        super().__init__(task)
        self.score_padding = score_padding

    def forward(self, model: nn.Module, sample: Values, reduce: bool = True) -> Tuple[Tensor, Tensor, Values]:
        """Return the loss of a batch of the task (summed over scored tokens), their number, and the log."""
        output = model(**sample["net_input"])
        plain = plain_module(model, PretrainingModel)
        scored = output["mask"]
        if not self.score_padding and (padding_mask := sample["net_input"]["padding_mask"]) is not None:
            padding = plain.encoder.patch_padding(padding_mask)
            scored = scored & ~padding.repeat_interleave(len(scored) // len(padding), dim=0)  # clones, clip by clip
        sums = summed_losses(plain, output, scored)
        losses = {"loss": sums.pop("loss"), **{f"loss_{name}": value for name, value in sums.items()}}
        sample_size = scored.sum()
        log = self.log(losses, sample_size, sample)
        if _VARIANCE in output:
            log[_VARIANCE] = output[_VARIANCE] * sample_size
            log[_SIMILARITY] = _similarity(output["prediction"], output["target"], scored)
        return losses["loss"], sample_size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Values]) -> None:
        """Log the means over all summands of all devices.

        Raises:
            UserError: the targets of a model that learns from its own features have become the same everywhere.
        """
        super().reduce_metrics(logging_outputs)
        summands = sum(log["sample_size"] for log in logging_outputs)
        if summands and any(_VARIANCE in log for log in logging_outputs):
            variance = float(sum(log.get(_VARIANCE, 0.0) for log in logging_outputs) / summands)
            metrics.log_scalar(_VARIANCE, variance, summands, round=4)
            similarity = sum(log.get(_SIMILARITY, 0.0) for log in logging_outputs) / summands
            metrics.log_scalar(_SIMILARITY, similarity, summands, round=4)
            if variance < MIN_TARGET_VARIANCE:
                raise UserError(
                    f"the model has collapsed: its teacher gives every token the same features (their variance is "
                    f"{variance:.1e}, below {MIN_TARGET_VARIANCE:g}); start again with a lower learning rate, a longer "
                    "warm-up or a slower teacher"
                )


@register_criterion("amae_reconstruction", dataclass=AmaeMaskedPredictionConfig)
class AmaeReconstruction(AmaeMaskedPrediction):
    """The first name of :class:`AmaeMaskedPrediction`, which recipes and checkpoints may hold."""

    @classmethod
    def build_criterion(cls, cfg: DictConfig, task: FairseqTask) -> FairseqCriterion:
        """Build the criterion, and log its other name."""
        logger.info("criterion amae_reconstruction is also called amae_masked_prediction, the name to use in recipes")
        return super().build_criterion(cfg, task)


# fairseq resumes a run only with a criterion of the class name that the checkpoint holds: one name for both.
AmaeMaskedPrediction.__name__ = AmaeReconstruction.__name__


@torch.no_grad()
def _similarity(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Sum the cosines of predictions (N, L, D) and centred features (B, L, D) over scored tokens (N, L) of N clones."""
    centred = target - target.mean(dim=-1, keepdim=True)
    cosines = F.cosine_similarity(prediction.unflatten(0, (len(target), -1)), centred[:, None], dim=-1)
    return (cosines.flatten(0, 1) * scored).sum()


def _loss_scale(optimizer: FairseqOptimizer) -> float:
    """Return the loss scale of fairseq's AMP, which sinks whenever it skips a step whose gradients are not finite."""
    return optimizer.scaler.get_scale() if isinstance(optimizer, AMPOptimizer) else 1.0


@dataclass
class AmaeAudioMAEConfig(AudioMAEConfig, SpeechConfig):
    """Settings of :class:`AmaeAudioMAE`."""

    input_length: int = II("task.target_length")
    num_mel_bins: Optional[int] = II("task.num_mel_bins")  # type: ignore[assignment]


@register_model("amae_audio_mae", dataclass=AmaeAudioMAEConfig)
class AmaeAudioMAE(SpeechEncoder, AudioMAE, TrainedModel):
    """Audio-MAE as fairseq trains it."""

    plain_config = AudioMAEConfig


@dataclass
class AmaeMAEASTConfig(MAEASTConfig, SpeechConfig):
    """Settings of :class:`AmaeMAEAST`."""

    num_mel_bins: Optional[int] = II("task.num_mel_bins")  # type: ignore[assignment]


@register_model("amae_mae_ast", dataclass=AmaeMAEASTConfig)
class AmaeMAEAST(SpeechEncoder, MAEAST, TrainedModel):
    """MAE-AST as fairseq trains it."""

    plain_config = MAEASTConfig


@dataclass
class AmaeSSASTConfig(SSASTConfig, SpeechConfig):
    """Settings of :class:`AmaeSSAST`."""

    input_length: int = II("task.target_length")
    num_mel_bins: Optional[int] = II("task.num_mel_bins")  # type: ignore[assignment]


@register_model("amae_ssast", dataclass=AmaeSSASTConfig)
class AmaeSSAST(SpeechEncoder, SSAST, TrainedModel):
    """SSAST as fairseq trains it."""

    plain_config = SSASTConfig


@dataclass
class AmaeM2DConfig(M2DConfig, SpeechConfig):
    """Settings of :class:`AmaeM2D`."""

    input_length: int = II("task.target_length")
    num_mel_bins: Optional[int] = II("task.num_mel_bins")  # type: ignore[assignment]


@register_model("amae_m2d", dataclass=AmaeM2DConfig)
class AmaeM2D(SpeechEncoder, M2D, TrainedModel):
    """M2D as fairseq trains it."""

    plain_config = M2DConfig


@dataclass
class AmaeEATConfig(EATConfig, SpeechConfig):
    """Settings of :class:`AmaeEAT`."""

    input_length: int = II("task.target_length")
    num_mel_bins: Optional[int] = II("task.num_mel_bins")  # type: ignore[assignment]


@register_model("amae_eat", dataclass=AmaeEATConfig)
class AmaeEAT(SpeechEncoder, EAT, TrainedModel):
    """EAT as fairseq trains it."""

    plain_config = EATConfig


@dataclass
class AmaeCAVMAEConfig(CAVMAEConfig, SpeechConfig):
    """Settings of :class:`AmaeCAVMAE`; a null of the task leaves a setting to the system."""

    input_length: int = II("task.target_length")
    num_mel_bins: Optional[int] = II("task.num_mel_bins")  # type: ignore[assignment]
    image_size: Optional[int] = II("oc.select:task.image_size,null")  # type: ignore[assignment]
    modalities: Any = II("oc.select:task.modalities,null")
    imagenet: Optional[str] = setting(None, "file of an image MAE's weights to start from, in all branches")

    def __post_init__(self) -> None:
        """Leave the checks to the plain config: here settings may still be references to others."""


@register_model("amae_cav_mae", dataclass=AmaeCAVMAEConfig)
class AmaeCAVMAE(SpeechEncoder, CAVMAE, TrainedModel):
    """CAV-MAE as fairseq trains it."""

    plain_config = CAVMAEConfig
