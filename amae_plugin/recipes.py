"""Recipes: how a command reads one, and the values ``${amae.<name>:...}`` that a recipe computes.

Importing this module defines those values, each under the name of its function.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigValueError, MissingMandatoryValue, OmegaConfBaseException

from amae_plugin.cluster.lock import is_in_use
from amae_plugin.data.manifest import Manifest
from amae_plugin.errors import UserError
from amae_plugin.models.registry import SYSTEMS

_PLAIN = re.compile(r"(?!(?:null|true|false|inf|nan)$)[a-z_][\w-]*|[\w.-]*/[\w./-]*", re.ASCII | re.IGNORECASE)
"""Text that Hydra takes for itself without quotes: a word, or a path of plain characters."""


def override(key: str, *texts: str | Path) -> str:
    """Write the Hydra override that gives a setting exactly this text, such as a path, whatever characters it has.

    With several texts it is a sweep over them. This is an argument of a command; to print a command for a shell, join
    its arguments with :func:`shlex.join`.

    Raises:
        UserError: a text holds "${", which fairseq takes for a reference when it reads its settings a second time.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    values = []
    for path in texts:
        text = str(path)
        if "${" in text:
            raise UserError(f"{key}={text}: fairseq takes ${{ for a reference to a setting; choose a name without it")
        values.append(text if _PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes())
    return f"{key}={','.join(values)}"


@contextmanager
def open_recipe(recipe: str, config_dir: Path, overrides: Sequence[str] = ()) -> Iterator[DictConfig]:
    """Compose a recipe from its files; its values are resolved as they are taken.

    Args:
        recipe: name in ``config_dir``, or path of a file.
        config_dir: folder of recipes.
        overrides: changes in Hydra's syntax.

    Raises:
        UserError: the recipe does not exist; or it, an override, or a value taken while it is open cannot be read.
    """
    # Only the commands that read recipes pay for importing Hydra.
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from yaml import YAMLError  # type: ignore[import-untyped]

    path = Path(recipe) if recipe.endswith(".yaml") else config_dir / f"{recipe}.yaml"
    if not path.is_file():
        existing = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"no recipe {path}; in {path.parent} there are: {existing} (--config-dir says where they are)")
    try:
        with initialize_config_dir(str(path.parent.absolute()), version_base="1.2"):
            config = compose(path.stem, overrides=list(overrides))
        yield config
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: {error}") from None


def reason(error: OmegaConfBaseException) -> str:
    """Return in a sentence which setting cannot be read, and why."""
    origin: BaseException | None = error
    while origin is not None:
        if isinstance(origin, UserError):  # of a value that a recipe computes
            return str(origin)
        origin = origin.__context__
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set, and has no default: give {error.full_key}=..."
    sentence = str(error).split("\n", 1)[0]
    return f"{error.full_key}: {sentence}" if error.full_key else sentence


def recipe_number(recipe: str, config_dir: Path, key: str, overrides: Sequence[str] = ()) -> int:
    """Read a setting of a recipe that must be a whole number from 1 on; see :func:`open_recipe`."""
    with open_recipe(recipe, config_dir, overrides) as config:
        return whole_number(config, key)


def whole_number(config: DictConfig, key: str) -> int:
    """Read a setting of an open recipe that must be a whole number from 1 on.

    Raises:
        ConfigValueError: the setting is missing or another value; :func:`open_recipe` makes it a ``UserError``.
    """
    value = OmegaConf.select(config, key)
    if not isinstance(value, int) or value < 1:
        raise ConfigValueError(f"{key} must be a whole number from 1 on, not {value}")
    return value


def model_settings(recipe: str, config_dir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the model section of a recipe; see :func:`open_recipe` and :func:`model_section`."""
    with open_recipe(recipe, config_dir, overrides) as config:
        return model_section(config)


def model_section(config: DictConfig) -> dict[str, Any]:
    """Resolve the model section of an open recipe, and add the size of the input, which the task section holds."""
    sizes = {"input_length": config.task.target_length, "num_mel_bins": config.task.num_mel_bins}
    model = {**sizes, **OmegaConf.to_container(config.model, resolve=True)}
    if model["num_mel_bins"] is None and model.get("_name") in SYSTEMS:
        model["num_mel_bins"] = SYSTEMS[model["_name"]].default_input.num_mel_bins
    return model


def user_path(path: str) -> Path:
    """Make a path absolute from the folder where the user typed it, even after Hydra changed the working directory."""
    from hydra.utils import to_absolute_path

    return Path(to_absolute_path(path))


def plugin_dir() -> str:
    """``${amae.plugin_dir:}``: the folder for ``common.user_dir``; started processes register the plugin by it."""
    return str(Path(__file__).parent)


def unless_in_use(name: str, folder: str) -> str | None:
    """``${amae.unless_in_use:NAME,FOLDER}``: NAME, or null while a run holds the folder of checkpoints.

    Hydra writes the settings of a run before the run can be refused; without a name for them, it writes none.
    """
    return None if is_in_use(user_path(folder)) else name


def clips(folder: str, subset: str) -> int:
    """``${amae.clips:FOLDER,SUBSET}``: clips of the manifest ``FOLDER/SUBSET.tsv``.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    return len(Manifest.read(user_path(folder) / f"{subset}.tsv").require_clips())


def updates_of(number: int, clips_per_update: int, epochs: float) -> int:
    """``${amae.updates_of:CLIPS,CLIPS_PER_UPDATE,EPOCHS}``: optimizer updates in a number of epochs."""
    return round(math.ceil(int(number) / int(clips_per_update)) * float(epochs))


def updates(folder: str, subset: str, clips_per_update: int, epochs: float) -> int:
    """``${amae.updates:FOLDER,SUBSET,CLIPS_PER_UPDATE,EPOCHS}``: the same for a manifest's clips."""
    return updates_of(clips(folder, subset), clips_per_update, epochs)


def update_freq(clips_per_update: int, batch_size: int, devices: int) -> int:
    """``${amae.update_freq:CLIPS_PER_UPDATE,BATCH_SIZE,DEVICES}``: accumulation steps that make up the global batch.

    Raises:
        UserError: the global batch is not a multiple of the clips that all devices compute at a time.
    """
    return _steps("task.clips_per_update", clips_per_update, "dataset.batch_size", batch_size, devices)


def update_freq_of_frames(frames_per_update: int, max_tokens: int, devices: int) -> int:
    """``${amae.update_freq_of_frames:FRAMES_PER_UPDATE,MAX_TOKENS,DEVICES}``: the same for batches measured in frames.

    Raises:
        UserError: the global batch is not a multiple of the frames that all devices compute at a time.
    """
    return _steps("task.frames_per_update", frames_per_update, "dataset.max_tokens", max_tokens, devices)


def _steps(whole_name: str, whole: int, part_name: str, part: int, devices: int) -> int:
    for name, number in ((whole_name, whole), (part_name, part)):
        if number is None or int(number) < 1:
            value = "null" if number is None else number
            raise UserError(f"{name}={value}: must be 1 or more, or set optimization.update_freq=[...] yourself")
    steps, rest = divmod(int(whole), int(part) * int(devices))
    if rest:
        remedy = "choose one that divides it"
        raise UserError(
            f"{whole_name}={whole} is not a multiple of {part_name}={part} times {devices} devices; {remedy}"
        )
    return steps


def scaled_lr(base_lr: float, clips_per_update: int) -> float:
    """``${amae.scaled_lr:BASE_LR,CLIPS_PER_UPDATE}``: base lr x global batch / 256, the rule of MAE's recipes."""
    return float(base_lr) * int(clips_per_update) / 256


def devices(nodes: int, per_node: int) -> int:
    """``${amae.devices:NODES,PER_NODE}``: processes that train together."""
    return int(nodes) * int(per_node)


def positive(number: float) -> bool:
    """``${amae.positive:NUMBER}``: whether the number is above 0."""
    return float(number) > 0


_OF_RUNS = (plugin_dir, unless_in_use, devices, positive)
_OF_CLIPS = (clips, updates, updates_of, update_freq, update_freq_of_frames, scaled_lr)
for _value in (*_OF_RUNS, *_OF_CLIPS):
    OmegaConf.register_new_resolver(f"amae.{_value.__name__}", _value, replace=True)
