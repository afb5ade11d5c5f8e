"""Completion of arguments in a shell, by argcomplete."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from amae_plugin.cli.choices import CONTESTANTS, MASKINGS
from amae_plugin.errors import UserError
from amae_plugin.recipe_files import recipe_folder, recipe_titles

SHELLS = ("bash", "zsh", "fish")


class PrintCompletion(argparse.Action):
    """Print what a shell has to run to complete the arguments of the program."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: Any = None) -> None:
        """Print it, and exit."""
        import argcomplete

        print(argcomplete.shellcode([parser.prog], shell=values))
        parser.exit()


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks how a command line could go on, and end this process."""
    import argcomplete
    from argcomplete.completers import FilesCompleter

    kinds: dict[str, Callable[..., Iterable[str]]] = {
        "CHECKPOINT": FilesCompleter(["pt"]),
        "MANIFEST": FilesCompleter(["tsv"]),
        "MANIFEST_OR_DIR": FilesCompleter(["tsv"]),
        "RECIPE": _recipes,
        "--systems": lambda **asked: CONTESTANTS,
        "--strategy": lambda **asked: MASKINGS,
    }
    for action in _actions(parser):
        for name in (action.metavar, *action.option_strings):
            if isinstance(name, str) and name in kinds:
                vars(action)["completer"] = kinds[name]
    argcomplete.autocomplete(parser, always_complete_options="long")


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _recipes(parsed_args: argparse.Namespace, **asked: object) -> Sequence[str]:
    try:
        return list(recipe_titles(getattr(parsed_args, "config_dir", None) or recipe_folder()))
    except UserError:
        return []  # a folder without recipes, of which the command itself will tell
