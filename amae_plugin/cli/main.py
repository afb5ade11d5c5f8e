"""``amae``: a module for each command, with ``add_arguments`` and ``run``; its docstring describes the command."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from amae_plugin import __version__
from amae_plugin.cli.terminal import shown
from amae_plugin.errors import UserError
from amae_plugin.processes import run_program

COMMANDS = {
    "benchmark": "speed of training or of the data path",
    "compare": "all systems, pretrained and fine-tuned on equal data",
    "convert": "convert published weights to a checkpoint of this plugin",
    "embed": "embed audio files",
    "evaluate": "measure a checkpoint on a split",
    "export": "export a checkpoint to timm's Vision Transformer and to ONNX",
    "inspect": "describe a checkpoint: model, input, training, measures",
    "manifest": "write the manifests of a corpus",
    "pack": "pack the clips of manifests into tar shards, resampled once",
    "plan": "time and resources of a recipe on GPUs",
    "predict": "predict the classes of audio files with a classifier",
    "probe": "k-NN and linear probes of a checkpoint's frozen features, by layer",
    "recipes": "recipes of training runs: list, print, copy",
    "reconstruct": "a page to see and hear what a pretrained model fills in",
    "results": "validation results of a sweep's runs, with mean and std",
    "retrieve": "find pictures by sound and sounds by picture, with a model of both",
    "significance": "whether two classifiers differ by more than chance",
    "slurm": "submit a run as a SLURM job, and follow it",
    "stats": "mean and standard deviation of a corpus, for normalisation",
    "transcribe": "text of audio files, by a recogniser, with time stamps",
    "weights": "class-balanced sampling weights of a labelled manifest",
}


@shown()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 some inputs failed, 2 the input cannot be used; see also :func:`run_program`.
    """
    return run_program("amae", lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(given: Sequence[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="amae", description="Tools around the amae_plugin fairseq plugin.")
    parser.add_argument("--version", action="version", version=f"amae_plugin {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = subparsers.add_parser(name, help=text)
        if name in given:  # which takes as long as importing its module, and there are many
            module = importlib.import_module(f"amae_plugin.cli.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    if "" in given:  # as a path it would be the current folder
        raise UserError("an argument is empty, as a variable without a value makes it; give its value or leave it out")
    args = parser.parse_args(given)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
