"""Settings that models share, and their reading from a recipe or a checkpoint."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Dict, Optional, Tuple, Type, TypeVar, Union, get_args, get_origin

from amae_plugin.modules.masking import MASKINGS, Masking, build_masking

Settings = Mapping[str, Any]
"""Plain values by name, a section of a recipe or a checkpoint. A model section has its registered name as ``_name``."""
MODALITIES: Tuple[str, ...] = ("audio", "image")
"""What a model can take of a clip."""
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "layerdrop")
"""Names of the dropouts of an encoder's training."""
Config = TypeVar("Config", bound="ModelConfig")
T = TypeVar("T")


def setting(default: T, help: str) -> T:
    """Make the field of a config with its default and the help that fairseq shows."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelConfig:
    """Settings of every model. The fields carry their help in ``metadata``, which fairseq shows."""

    bf16: bool = setting(
        False, "matrix work in bfloat16; weights, optimizer, residual stream, norms and loss stay in float32"
    )
    compile: bool = setting(False, "compile the transformer blocks at their first use (a minute or two)")

    @classmethod
    def from_settings(cls: Type[Config], settings: Settings) -> Config:
        """Read the config from a model section.

        Keys without a field, such as fairseq's ``_name``, are ignored. Fields without a key, or with a null, keep their
        defaults. YAML's lists become tuples.

        Raises:
            ValueError: a value is not of its field's type, or not finite.
        """
        chosen = {f.name: settings[f.name] for f in fields(cls) if settings.get(f.name) is not None}
        return cls(**_checked(cls, chosen, "model"))


@dataclass
class PretrainingConfig(ModelConfig):
    """Settings of every pretraining model: input, encoder and masks; the encoder is a ViT-B by default.

    Pairs are (time, frequency).
    """

    num_mel_bins: int = setting(128, "mel bands of the input")
    patch_size: Tuple[int, int] = setting((16, 16), "frames and bands of a patch")
    embed_dim: int = setting(768, "width of the encoder")
    depth: int = setting(12, "blocks of the encoder")
    num_heads: int = setting(12, "attention heads of the encoder")
    mlp_ratio: float = setting(4.0, "hidden width of a block's MLP over its width")
    masking: str = setting(
        "random",
        "random, random_batched, chunk (or cluster), inverse_block, span, time, frequency or time_frequency",
    )
    mask_ratio: float = setting(0.75, "hidden share (all masks but time_frequency)")
    mask_ratio_time: float = setting(0.6, "hidden share of the time steps (time_frequency)")
    mask_ratio_frequency: float = setting(0.5, "hidden share of the bands (time_frequency)")
    mask_length: int = setting(10, "length of a span in tokens (span)")
    mask_options: Any = setting(None, "further parameters of the mask by name, for instance {sides: [5]} (chunk)")

    def build_masking(self) -> Masking:
        """Build the masking strategy.

        Raises:
            ValueError: no strategy has that name, an option is unknown or of a wrong type, or a parameter is out of
                range.
        """
        options = {} if self.mask_options is None else self.mask_options
        if not isinstance(options, Mapping):
            raise ValueError(
                f"model.mask_options is {options!r}, must be parameters of the mask by name, as {{sides: [5]}}"
            )
        if self.masking in MASKINGS:
            options = _checked(MASKINGS[self.masking], options, "model.mask_options")
        return build_masking(self.masking, vars(self), options)


@dataclass(frozen=True)
class SpeechSettings:
    """What a recipe of fairseq for speech changes in an encoder, by fairseq's names.

    A null is the system's own value: what it was pretrained with if it has such a dropout, else 0. The defaults of the
    masks are those of wav2vec 2.0's pretraining. Lengths of masks in time count time steps.

    Raises:
        ValueError: a probability or a length is out of range, a factor is negative, or a mask is none of those drawn.
    """

    dropout: Optional[float] = setting(None, "dropout of the branches of the blocks")
    attention_dropout: Optional[float] = setting(None, "dropout of the attention weights")
    activation_dropout: Optional[float] = setting(None, "dropout after an MLP's activation")
    dropout_input: Optional[float] = setting(None, "dropout of the embedded tokens")
    layerdrop: Optional[float] = setting(None, "probability that a batch skips a block")
    encoder_layerdrop: Optional[float] = setting(None, "the same; this name goes before")
    drop_path: float = setting(0.0, "stochastic depth: rate of the last block")
    feature_grad_mult: float = setting(1.0, "factor of the gradient of the patch embedding; 0: it is frozen")
    mask_prob: float = setting(0.65, "hidden share of the time steps, spans that overlap counted twice")
    mask_length: int = setting(10, "time steps of a hidden span")
    mask_selection: str = setting("static", "lengths of the spans: static, all equal")
    no_mask_overlap: bool = setting(False, "must be false: spans may overlap")
    mask_dropout: float = setting(0.0, "share of the hidden steps that are shown again")
    mask_channel_prob: float = setting(0.0, "share of the channels of embedded tokens that become 0, likewise")
    mask_channel_length: int = setting(10, "channels of a span")
    mask_channel_selection: str = setting("static", "lengths of the spans: static, all equal")
    no_mask_channel_overlap: bool = setting(False, "must be false: spans may overlap")

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"model.drop_path must be at least 0 and below 1, not {self.drop_path}")
        for name in ("mask_prob", "mask_channel_prob", "mask_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.{name} must be between 0 and 1, not {getattr(self, name)}")
        for name, drawn in (("selection", "static"), ("overlap", False)):
            for kind in ("mask", "mask_channel"):
                key = f"{kind}_{name}" if name == "selection" else f"no_{kind}_{name}"
                if getattr(self, key) != drawn:
                    raise ValueError(f"model.{key} must be {str(drawn).lower()}, not {getattr(self, key)}")
        for name in ("mask_length", "mask_channel_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.feature_grad_mult < 0:
            raise ValueError(f"model.feature_grad_mult must be at least 0, not {self.feature_grad_mult}")

    def dropouts(self) -> Dict[str, Optional[float]]:
        """Return the arguments of :meth:`Encoder.set_dropout`."""
        found = {name: getattr(self, name) for name in DROPOUTS}
        return found if self.encoder_layerdrop is None else {**found, "layerdrop": self.encoder_layerdrop}


@dataclass
class DownstreamConfig(ModelConfig):
    """Settings of every downstream model."""

    encoder: Any = setting(None, "model section of the system that the encoder comes from, with _name and sizes")
    drop_path: float = setting(0.1, "stochastic depth: rate of the last block")


def _checked(kind: type, settings: Settings, section: str) -> Settings:
    """Return settings with tuples for YAML's lists, after a comparison with the fields of a class.

    Raises:
        ValueError: a value is not of its field's type, or not finite.
    """
    values = {name: tuple(value) if _is_list(value) else value for name, value in settings.items()}
    for each in fields(kind):
        if each.name in values and not _fits(values[each.name], each.type):
            raise ValueError(f"{section}.{each.name} is {settings[each.name]!r}, must be {_in_words(each.type)}")
    return values


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _fits(value: object, kind: Any) -> bool:
    """Tell whether a value is of a field's type; a whole number also fits a fraction, but no truth value does."""
    if get_origin(kind) is Union:
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_fits(each, parts[0]) for each in value)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    return kind is Any or type(value) is kind


def _in_words(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a name", type(None): "null"}
    if get_origin(kind) is Union:
        return " or ".join(map(_in_words, get_args(kind)))
    if Ellipsis in get_args(kind):
        return "a list of whole numbers" if int in get_args(kind) else "a list of names"
    return words.get(kind, "a pair of whole numbers")
