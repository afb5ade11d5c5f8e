"""``amae``: one subcommand a module; each module has ``add_parser`` and the function that it sets as ``run``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from amae_plugin.errors import UserError

SUBCOMMANDS = (
    "benchmark",
    "compare",
    "convert",
    "embed",
    "evaluate",
    "export",
    "inspect",
    "manifest",
    "plan",
    "predict",
    "reconstruct",
    "results",
    "slurm",
    "stats",
    "weights",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit code: 0 done, 1 some inputs failed, 2 the input cannot be used.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    # Only the module of the subcommand given is imported; all of them take seconds.
    needed = [name for name in SUBCOMMANDS if given[:1] == [name]] or SUBCOMMANDS
    parser = argparse.ArgumentParser(prog="amae", description="Tools around the amae_plugin fairseq plugin.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    try:
        for name in needed:
            importlib.import_module(f"amae_plugin.cli.{name}").add_parser(subparsers)
        args = parser.parse_args(given)
        return args.run(args)
    except UserError as error:
        print(f"amae: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
