"""Hydra's callback of a run: it registers the plugin, and with it the values that recipes compute.

A recipe names :class:`RegisterPlugin` as a Hydra callback. Hydra imports it when a run starts, on whatever machine the
run starts on, so no ``common.user_dir`` has to be typed; :mod:`amae_plugin.recipes` defines what recipes compute.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from amae_plugin.cluster.layout import in_job
from amae_plugin.errors import UserError, printable
from amae_plugin.files import try_place, writing
from amae_plugin.recipes import reason, user_path

_SWEPT = "AMAE_SWEPT"
"""Variable of the environment that tells the jobs of a sweep what it varies, wherever they run."""


@contextlib.contextmanager
def ending_in_words() -> Iterator[None]:
    """End this process by a sentence and the exit code 2, where Hydra would print a traceback.

    The traceback goes to the log file of the run, if it has begun one.

    Raises:
        SystemExit: instead of a ``UserError``, or of an error about a setting, an override or a recipe.
    """
    try:
        yield
    except (UserError, OmegaConfBaseException, HydraException, YAMLError) as error:
        from amae_plugin.fairseq_plugin.checks import addable_keys

        sentence = str(error) if isinstance(error, UserError) else reason(error, addable_keys)
        record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, sentence, None, sys.exc_info())
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
        print(f"fairseq-hydra-train: {printable(sentence)}", file=sys.stderr)
        raise SystemExit(2) from error


class Brief(logging.Filter):
    """Keeps the whole configuration, which fairseq logs as one record, from the terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is anything else."""
        return not isinstance(record.msg, DictConfig)


class LogFile(logging.FileHandler):
    """Log of a run. If it cannot be written, as on a full disk, one line says so, not a traceback for each record."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say once why a record could not be written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            text = f"{self.baseFilename}: cannot write the log ({error.strerror}); make room, or it will lack lines"
            print(f"fairseq-hydra-train: {text}", file=sys.stderr)


def in_words() -> contextlib.AbstractContextManager[None]:
    """Return :func:`ending_in_words` in a command that Hydra runs; elsewhere, errors go on to the caller."""
    return ending_in_words() if HydraConfig.initialized() else contextlib.nullcontext()


class RegisterPlugin(Callback):
    """Registers the plugin by being imported, prepares fairseq for a run, and returns the run's result.

    Attributes:
        result: best validation result of the latest run in this process; None if it was not validated.
    """

    result: float | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the run's folder.

        Raises:
            SystemExit: it cannot be written.
        """
        os.environ.pop(_SWEPT, None)  # of a sweep whose process starts this run
        HydraConfig.instance().set_config(config)  # the folder's name may refer to it
        _make_writable_folder(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the sweep's folder, and note what the sweep varies.

        Raises:
            SystemExit: it cannot be written.
        """
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        keys = [each.package or each.key_or_group for each in overrides if each.is_sweep_override()]
        spaces = [OmegaConf.select(config, f"hydra.sweeper.{name}") or {} for name in ("params", "search_space")]
        os.environ[_SWEPT] = " ".join([*keys, *(str(key) for space in spaces for key in space)])
        _make_writable_folder(config.hydra.sweep.dir)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the plugin's changes to fairseq, if they fit it, and check that the settings have values of their kinds.

        Raises:
            SystemExit: they do not; Hydra would turn any other error into a warning, and train without them.
        """
        try:
            # Imported here: with a launcher of its own, a sweep's process starts no run and needs no fairseq.
            from amae_plugin.fairseq_plugin import patches

            patches.check()
            patches.install()
        except (ImportError, UserError) as error:
            raise SystemExit(f"amae_plugin: {error}") from error
        if not in_job(os.environ):  # whose log gets the error where fairseq meets it
            from fairseq.dataclass.initialize import add_defaults

            from amae_plugin.fairseq_plugin.checks import check_keys

            with ending_in_words():
                settings = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
                check_keys(settings)
                add_defaults(settings)
                OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Return the best validation result, ``checkpoint.best_checkpoint_metric``: what a sweeper optimises.

        ``fairseq-hydra-train`` returns nothing, so a sweeper could not choose.
        """
        from amae_plugin.evaluation.sweep import read_result

        RegisterPlugin.result = None
        if job_return.status == JobStatus.COMPLETED:
            with contextlib.suppress(UserError):  # not validated
                RegisterPlugin.result = read_result(job_return.cfg.checkpoint.save_dir).best
            job_return.return_value = RegisterPlugin.result

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the results of a sweep's runs, their mean and standard deviation."""
        os.environ.pop(_SWEPT, None)
        if not config.hydra.launcher.get("wait", True):
            return  # the runs have only been submitted
        from amae_plugin.evaluation.sweep import summarize

        try:
            print(summarize(user_path(config.hydra.sweep.dir)).text())
        except UserError as error:
            # Of a sweep that failed, the error that made it fail is the one to read.
            print(f"no summary of the sweep: {error}")


def swept_keys() -> list[str]:
    """Return the keys of the settings that the sweep varies which this job is of; none if it is of none."""
    return os.environ.get(_SWEPT, "").split()


def _make_writable_folder(path: str) -> None:
    folder = Path(path)
    remedy = "make it writable, or choose another (hydra.run.dir=..., of a sweep hydra.sweep.dir=...)"
    with ending_in_words(), writing(folder, "in this folder, which is to be the run's", remedy):
        try_place(folder / "config.yaml")
