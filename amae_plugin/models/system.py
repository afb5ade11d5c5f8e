"""A system: the classes of a pretraining method, its input and its published files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from torch import Tensor

from amae_plugin.data.log_mel import ModelInput
from amae_plugin.models.base import Encoder, PretrainingModel
from amae_plugin.models.published import PublishedFormat
from amae_plugin.models.settings import PretrainingConfig, Settings
from amae_plugin.models.timm_vit import TimmVit
from amae_plugin.modules.embedding import Size2d

E = TypeVar("E", bound=Encoder)


@dataclass(frozen=True)
class System(Generic[E]):
    """Everything that shared code needs to know about a system.

    Attributes:
        title: name for people.
        config: class of the settings.
        model_class: pretraining model, built from a config.
        encoder_class: encoder, built from the same config.
        paper: whom to cite: authors, title, place, year and number at arXiv.
        default_input: input of the published models; recipes change its length and statistics.
        downstream: settings of the encoder that a downstream task replaces, for instance a regularisation of
            pretraining.
        fits_positions: whether pretrained positions are cut or interpolated to the length of a downstream input.
        published: formats of published checkpoints, see :mod:`amae_plugin.models.published`.
        load_image_weights: function that loads an image model's state dict into an encoder; None if the system never
            starts from images. Raises ValueError or RuntimeError if the weights do not fit.
        as_timm: function from an encoder, the input's frames and bands, and a classifier's pooling to timm's Vision
            Transformer. Raises UserError if timm has no such model.
    """

    title: str
    config: type[PretrainingConfig]
    model_class: type[PretrainingModel]
    encoder_class: type[E]
    paper: str = field(kw_only=True)
    default_input: ModelInput = field(default_factory=ModelInput)
    downstream: Mapping[str, object] = field(default_factory=dict)
    fits_positions: bool = False
    published: tuple[type[PublishedFormat], ...] = ()
    load_image_weights: Callable[[E, Mapping[str, Tensor]], None] | None = None
    as_timm: Callable[[E, Size2d, str | None], TimmVit] | None = None

    def input(self, settings: Settings) -> ModelInput:
        """Return the default input of an encoder's section, which may have other mel bands, another image or none."""
        bands = settings.get("num_mel_bins") or self.default_input.num_mel_bins
        front_end = replace(self.default_input.front_end, num_mel_bins=bands)
        image = self.default_input.image
        if "image" not in (settings.get("modalities") or self.encoder_class.modalities):
            image = None
        elif image is not None:
            image = replace(image, size=settings.get("image_size") or image.size)
        return replace(self.default_input, front_end=front_end, image=image)

    def model(self, settings: Settings) -> PretrainingModel:
        """Build the pretraining model of a model section."""
        return self.model_class(self.config.from_settings(settings))

    def encoder(self, settings: Settings) -> E:
        """Build the encoder of a model section for a downstream task; it takes sound unless the section says more."""
        modalities = settings.get("modalities") or Encoder.modalities
        if unknown := set(modalities).difference(self.encoder_class.modalities):
            known = " and ".join(self.encoder_class.modalities)
            raise ValueError(
                f"model.encoder.modalities has {', '.join(sorted(unknown))}, but {self.title} takes {known}"
            )
        changed = {**settings, "modalities": modalities, **self.downstream}
        return self.encoder_class(self.config.from_settings(changed))
