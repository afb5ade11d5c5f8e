"""What ``fairseq-hydra-train`` says of a command or a recipe that Hydra cannot read: a sentence with the nearest name.

Hydra has no hook for that: it reads them before it makes callbacks. Its functions change only in a process that has
imported fairseq's training.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import wrapt
from hydra._internal import utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException, SearchPathException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

UNREADABLE = (
    ConfigCompositionException,
    OverrideParseException,
    SearchPathException,
    OmegaConfBaseException,
    YAMLError,
)


class AmaeMessages(SearchPathPlugin):
    """Makes the changes when Hydra looks for recipes; the search path stays as it is."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Make the changes, once."""
        if "fairseq_cli.train" not in sys.modules or isinstance(utils.run_and_report, wrapt.FunctionWrapper):
            return
        utils.run_and_report = wrapt.FunctionWrapper(utils.run_and_report, _in_a_sentence)
        ConfigLoaderImpl.load_configuration = wrapt.FunctionWrapper(ConfigLoaderImpl.load_configuration, _from_a_file)
        # fairseq registers its settings under any recipe's name, and asks for the details of every library's log.
        warnings.filterwarnings("ignore", message="\\s*'.*' is validated against ConfigStore schema")
        logging.getLogger().setLevel(max(logging.INFO, logging.getLogger().level))
        if {"--help", "-h"} & set(sys.argv):  # which lists what is registered
            import amae_plugin  # noqa: F401


def _in_a_sentence(
    report: Callable[..., Any], instance: None, args: Sequence[Callable[[], Any]], kwargs: Mapping[str, Any]
) -> Any:
    """Report an error of a command or a recipe by a sentence, unless ``HYDRA_FULL_ERROR`` asks for a traceback."""

    def run() -> Any:
        try:
            return args[0]()
        except UNREADABLE:
            # Not imported before Hydra has read the recipe, whose sections it would compare with registered models.
            from amae_plugin.fairseq_plugin.hydra import ending_in_words

            with ending_in_words():
                raise

    return report(*args, **kwargs) if os.environ.get("HYDRA_FULL_ERROR") == "1" else report(run)


def _from_a_file(
    load: Callable[..., Any], loader: ConfigLoaderImpl, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Compose a recipe that has a file.

    fairseq registers its settings under the name of any recipe, which Hydra then takes for one.

    Raises:
        MissingConfigException: there is no file.
    """
    name = kwargs["config_name"]
    if any(override.startswith("hydra.searchpath=") for override in kwargs["overrides"]):
        return load(*args, **kwargs)  # from folders that are not known yet
    sources = [each for each in loader.get_sources() if each.scheme() != "structured" and each.available()]
    if name is not None and not any(source.is_config(name) for source in sources):
        recipes = [each for each in sources if each.provider not in ("hydra", "main")] or sources
        names = [found for each in recipes for found in each.list("", ObjectType.CONFIG)]
        folders = ", ".join(source.path.removeprefix("file://") for source in recipes)
        raise MissingConfigException(f"{name}: there is no such recipe in {folders}", name, names)
    return load(*args, **kwargs)
