"""List the recipes, print one, or copy them.

Without ACTION it lists each recipe with what it trains. They are those of the folder config where the command runs, or
else those that were installed with the package.
"""

import argparse
import shlex
from pathlib import Path

from amae_plugin.cli.arguments import add_config_dir
from amae_plugin.recipe_files import copy_recipes, recipe_titles

_FIRST = "pretrain_audio_mae_tiny"  # that `make demo` begins with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    add_config_dir(parser)
    parser.set_defaults(action=_list)
    actions = parser.add_subparsers(metavar="ACTION")
    show = actions.add_parser("show", help="print a recipe as its parts make it")
    show.add_argument("recipe", metavar="RECIPE", help="print this recipe, a name in --config-dir or a file")
    show.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change the recipe by these settings")
    show.set_defaults(action=_show)
    copy = actions.add_parser("copy", help="copy all recipes, to change them")
    copy.add_argument(
        "folder", type=Path, metavar="DIR", help="copy to this new folder, for --config-dir of fairseq-hydra-train"
    )
    copy.set_defaults(action=_copy)
    for action in (show, copy):  # after the action as well as before it
        add_config_dir(action, default=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    args.action(args)


def _list(args: argparse.Namespace) -> None:
    titles = recipe_titles(args.config_dir)
    width = max(map(len, titles))
    for name, title in titles.items():
        print(f"{name:{width}}  {title}".rstrip())


def _show(args: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from amae_plugin.recipes import open_recipe

    with open_recipe(args.recipe, args.config_dir, args.overrides) as config:
        print(OmegaConf.to_yaml(config), end="")


def _copy(args: argparse.Namespace) -> None:
    copy_recipes(args.config_dir, args.folder)
    names = recipe_titles(args.folder)
    name = _FIRST if _FIRST in names else next(iter(names))
    command = ["fairseq-hydra-train", "--config-dir", str(args.folder), "--config-name", name]
    command += ["task.data=manifests/mine", "task.mean=auto", "task.std=auto"]
    print(f"recipes: {args.folder}\nnext, by one of them:\n  {shlex.join(command)}")
