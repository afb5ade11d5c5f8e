"""``amae``: one subcommand a module; each module has ``add_parser`` and the function that it sets as ``run``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from amae_plugin.errors import UserError

SUBCOMMANDS = ("benchmark", "evaluate", "manifest", "results", "slurm", "stats", "weights")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code (0 done, 1 some inputs failed, 2 the input cannot be used)."""
    parser = argparse.ArgumentParser(prog="amae", description="Tools around the amae_plugin fairseq plugin.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    try:
        for name in SUBCOMMANDS:
            importlib.import_module(f"amae_plugin.cli.{name}").add_parser(subparsers)
        args = parser.parse_args(argv)
        return args.run(args)
    except UserError as error:
        print(f"amae: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
