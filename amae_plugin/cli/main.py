"""``amae``: a module for each command, with ``add_arguments`` and ``run``; its docstring describes the command."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from amae_plugin import __version__
from amae_plugin.cli.completion import SHELLS, PrintCompletion, complete
from amae_plugin.cli.terminal import shown
from amae_plugin.errors import UserError
from amae_plugin.processes import run_program

COMMANDS = {
    "average": "average the weights of checkpoints, or take the moving average of one",
    "benchmark": "measure the speed of training or of the data path",
    "compare": "pretrain and fine-tune all systems on equal data",
    "convert": "convert published weights to a checkpoint of this plugin",
    "embed": "turn audio files into embeddings",
    "evaluate": "measure a checkpoint on a split",
    "export": "export a checkpoint to timm, ONNX or Hugging Face's transformers",
    "inspect": "describe a checkpoint: its model, input, training and measures",
    "manifest": "write the manifests of a corpus",
    "pack": "pack the clips of manifests into tar shards, resampled once",
    "plan": "estimate what training by a recipe takes on GPUs",
    "predict": "predict the classes of audio files with a classifier",
    "probe": "probe a checkpoint's frozen features layer by layer, by k-NN and linearly",
    "recipes": "list, print or copy the recipes of training runs",
    "reconstruct": "write a page to see and hear what a pretrained model fills in",
    "results": "print the validation results of a sweep's runs, with mean and deviation",
    "retrieve": "find pictures by sound and sounds by picture, with a model of both",
    "significance": "tell whether two classifiers differ by more than chance",
    "slurm": "submit a run as a SLURM job, and follow it",
    "stats": "measure the mean and standard deviation of a corpus, for normalisation",
    "transcribe": "write down what is said in audio files, with time stamps",
    "weights": "weigh the clips of a labelled manifest, so that classes are drawn equally often",
}


@shown()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 some inputs failed, 2 the input cannot be used; see also :func:`run_program`.
    """
    return run_program("amae", lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(given: Sequence[str]) -> int | None:
    parser = argparse.ArgumentParser(
        prog="amae", description="Work with recordings, recipes and checkpoints of amae_plugin."
    )
    parser.add_argument("--version", action="version", version=f"amae_plugin {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        default=argparse.SUPPRESS,
        metavar="SHELL",
        help=f"print what completes the arguments in a shell ({', '.join(SHELLS)})",
    )
    completes = "_ARGCOMPLETE" in os.environ
    words = os.environ.get("COMP_LINE", "").split() if completes else given
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = subparsers.add_parser(name, help=text)
        if name in words:  # which takes as long as importing its module, and there are many
            module = importlib.import_module(f"amae_plugin.cli.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    if completes:
        complete(parser)
    if "" in given:  # as a path it would be the current folder
        raise UserError("an argument is empty, as a variable without a value makes it; give its value or leave it out")
    args = parser.parse_args(given)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
