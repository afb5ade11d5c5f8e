"""Recipes: how a command reads one, and the values ``${amae.<name>:...}`` that a recipe computes.

Importing this module defines those values, each under the name of its function.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

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
        near = nearest(path.stem, [file.stem for file in path.parent.glob("*.yaml")], 3)
        remedy = f"the nearest are {', '.join(near)}" if near else f"{path.parent} holds none"
        raise UserError(f"no recipe {path}; {remedy} (--config-dir says where they are)")
    try:
        with initialize_config_dir(str(path.parent.absolute()), version_base="1.2"):
            config = compose(path.stem, overrides=list(overrides))
        yield config
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: {reason(error)}") from None


def reason(error: Exception, addable: Callable[[DictConfig], Iterable[str]] = lambda settings: ()) -> str:
    """Return in a sentence what of a recipe, an override or a setting cannot be read, and why.

    A name that does not exist comes with the nearest one.

    Args:
        error: Hydra's, OmegaConf's or PyYAML's.
        addable: of some settings, the keys that could be added to them.
    """
    from hydra.errors import MissingConfigException, OverrideParseException
    from yaml import MarkedYAMLError

    origin: BaseException | None = error
    while origin is not None:
        if isinstance(origin, UserError):  # of a value that a recipe computes
            return str(origin)
        origin = origin.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, OverrideParseException):
        form = "an override is key=value; a value with signs such as = needs quotes, as in key=\"'a=b'\""
        return f"{error.override}: cannot be read; {form}"
    if isinstance(error, MissingConfigException) and error.options:
        path = str(error.missing_cfg_file)
        return f"{lines[0]}; the nearest are {', '.join(nearest(path.rsplit('/', 1)[-1], error.options, 3))}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if not isinstance(cause, OmegaConfBaseException):
        return "; ".join(lines)
    if isinstance(cause, MissingMandatoryValue):
        what = ", a folder of manifests (train.tsv, valid.tsv), which amae manifest makes"
        remedy = f"give {cause.full_key}=...{what if cause.full_key == 'task.data' else ''}"
        return f"{cause.full_key} is not set, and has no default: {remedy}"
    if isinstance(cause, UnsupportedInterpolationType):  # Hydra looks at a setting that it is to add
        return f"{cause.full_key}: the recipe has it: {cause.full_key}=..., without a plus sign, changes it"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        settings, key = cause.parent_node._get_root(), str(cause.full_key)
        section, dot, _ = key.partition(".")
        if dot and section in settings and not settings[section]:
            return f"{key}: the settings have no {section}; --config-name=... names a recipe"
        recipe = re.match("Error merging '(.+)' with schema", lines[0])
        file = f"{recipe[1]}.yaml: " if recipe else ""
        return file + unknown_key(key, keys(settings), addable(settings))
    sentence = str(cause).split("\n", 1)[0]
    return f"{cause.full_key}: {sentence}" if cause.full_key else sentence


def unknown_key(key: str, present: Iterable[str], addable: Iterable[str] = ()) -> str:
    """Return in a sentence that there is no such setting, and which one is nearest.

    Args:
        key: names that lead to the setting, with dots between them.
        present: keys that the settings have.
        addable: keys that could be added to them.
    """
    of_hydra, addable = key.split(".", 1)[0] == "hydra", set(addable)
    present = {name for name in present if of_hydra or name.split(".", 1)[0] != "hydra"}
    if key in addable:
        return f"{key}: the recipe does not have it; +{key}=... adds it"
    (near,) = nearest(key, present | addable)
    return f"{key}: there is no such setting; the nearest is {near}" + ("" if near in present else f": +{near}=...")


def keys(settings: DictConfig) -> Iterator[str]:
    """Yield the keys of settings, sections included, with dots between the names that lead there."""
    for name, value in settings.items_ex(resolve=False):
        yield str(name)
        if isinstance(value, DictConfig) and not (value._is_none() or value._is_missing() or value._is_interpolation()):
            yield from (f"{name}.{key}" for key in keys(value))


def nearest(name: str, names: Iterable[str], count: int = 1) -> list[str]:
    """Return the names that are most like one; of keys, the part after the last dot counts twice."""

    def likeness(other: str) -> float:
        pairs = (name, other), (name.rsplit(".", 1)[-1], other.rsplit(".", 1)[-1])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return sorted(sorted(set(names)), key=likeness, reverse=True)[:count]


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
        of_device, uneven = divmod(int(whole), int(devices))
        fitting = [number for number in range(1, int(part)) if of_device % number == 0]
        remedy = "choose one that divides it" if uneven else f"{part_name}={fitting[-1]} would do"
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
_OF_CLIPS = (clips, updates_of, update_freq, update_freq_of_frames, scaled_lr)
for _value in (*_OF_RUNS, *_OF_CLIPS):
    OmegaConf.register_new_resolver(f"amae.{_value.__name__}", _value, replace=True)
