"""Parsers import nothing heavy, and what they offer is what the registries hold."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from amae_plugin.benchmark.step import PRECISIONS
from amae_plugin.cli import choices
from amae_plugin.cli.main import COMMANDS, main
from amae_plugin.corpora.layouts import LAYOUTS
from amae_plugin.corpora.packing import FORMATS as PACKINGS
from amae_plugin.data.log_mel import FRONT_ENDS, WINDOWS
from amae_plugin.inference.model import EMBEDDINGS
from amae_plugin.interop.convert import FORMATS as PUBLISHED
from amae_plugin.interop.export import FORMATS as EXPORTS
from amae_plugin.models.classifier.model import POOLINGS
from amae_plugin.models.settings import MODALITIES
from amae_plugin.modules.masking import MASKINGS
from amae_plugin.runs.comparison import CONTESTANTS

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("torch", "torchaudio", "numpy", "scipy", "sklearn", "matplotlib", "fairseq", "hydra", "omegaconf", "soundfile"),
    *("safetensors", "sentencepiece", "av", "onnx", "transformers", "tensorboardX", "rapidfuzz"),
)
# Every parser by its help, and arguments that are wrong wherever PyTorch is not needed to know.
ARGUMENTS = [
    ["--help"],
    ["--version"],
    ["no_such_command"],
    *([command, "--help"] for command in COMMANDS),
    *(["manifest", layout, "--help"] for layout in LAYOUTS),
    *(["slurm", action, "--help"] for action in ("submit", "status", "logs", "cancel")),
    *(["recipes", action, "--help"] for action in ("show", "copy")),
    *([command, "--no-such-option"] for command in COMMANDS),
    ["recipes"],
    ["benchmark", "--precision", "fp8"],
    ["benchmark", "--device", "toaster"],
    ["benchmark", "--batch", "0"],
    ["benchmark", "--compare", "--data", "x.tsv"],
    ["compare", "--pretrain", ".", "--fine-tune", ".", "--out", ".", "--minutes", "0"],
    ["convert", "a", "b", "--kind", "beats"],
    ["convert", "a", "b", "--window-type", "round"],
    ["convert", "a", "b", "--pooling", "max"],
    ["embed", "a.pt", "b.wav", "--out", "c.npz", "--layer", "3"],
    ["embed", "a.pt", "b.wav", "--out", "c.npz", "--format", "hubert"],
    ["embed", "a.pt", "b.wav", "--out", "c.npz", "--device", "gpu"],
    ["evaluate", "a.pt", "--data", "b", "--crops", "0"],
    ["export", "a.pt", "b", "--format", "gguf"],
    ["plan", "--recipe", "x", "--gpu", "abacus"],
    ["plan", "--recipe", "x", "--utilisation", "2"],
    ["predict", "a.pt", "b.wav", "--out", "c.xlsx"],
    ["reconstruct", "a.pt", "b.wav", "--out", "c", "--seconds", "9999"],
    ["stats", "a.tsv", "--front-end", "bark"],
    ["transcribe", "a.pt", "b.wav", "--out", "c.doc"],
    ["weights", ""],
]


def test_help_and_wrong_arguments_import_nothing_heavy() -> None:
    script = f"""
import contextlib, io, sys
from amae_plugin.cli.main import main
for arguments in {ARGUMENTS!r}:
    ends = 0 if {{"--help", "--version"}} & set(arguments) or arguments == ["recipes"] else 2
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    heavy = sorted({set(HEAVY)!r} & set(sys.modules))
    assert (code, heavy) == (ends, []), (arguments, code, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def parsers() -> Iterator[tuple[str, str | None, argparse.ArgumentParser]]:
    """Every parser: its command, what the help of the one above says of it, and itself."""
    for name, text in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"amae {name}")
        importlib.import_module(f"amae_plugin.cli.{name}").add_arguments(parser)
        yield name, text, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for entry in action._choices_actions:
                    yield f"{name} {entry.dest}", entry.help, action.choices[entry.dest]


FRAGMENT = re.compile(r"(?:[(\W]|(?:of|by|for|from|or|and|in|with|as|likewise|default)\b)")
RAW = re.compile(r"""\[['"\d]|\(['"\d][^)]*,|PosixPath|\bNone\b|\bTrue\b|\bFalse\b|<|%\(""")


def test_every_command_and_every_argument_is_explained() -> None:
    unexplained = []
    for command, text, parser in parsers():
        texts = {command: text}
        for action in parser._actions:
            help_text = parser._get_formatter()._expand_help(action) if action.help else None
            texts[f"{command} {'/'.join(action.option_strings) or action.metavar}"] = help_text
        for name, sentence in texts.items():
            if not sentence or len(sentence.split()) < 3 or FRAGMENT.match(sentence) or RAW.search(sentence):
                unexplained.append((name, sentence))
        assert not RAW.search(parser.format_usage()), parser.format_usage()
    commands = [command for command, _, _ in parsers()]
    actions = [name for name, _, _ in parsers() if name.split()[0] in ("manifest", "slurm", "recipes")]
    assert not [entry for entry in unexplained if entry[0] not in GROUPS], unexplained
    assert len(commands) > len(actions) > 10


GROUPS = ("manifest LAYOUT", "slurm ACTION", "recipes ACTION")
"""Arguments whose values explain themselves, a line each."""
COMPLETIONS = {
    "amae pre": ["predict"],
    "amae --print-completion ": ["bash", "zsh", "fish"],
    "amae recipes show pretrain_ssast_": ["pretrain_ssast_frame", "pretrain_ssast_patch", "pretrain_ssast_tiny"],
    "amae stats data --recipe finetune_ast": ["finetune_ast_as20k"],
    "amae slurm submit --config-name finetune_ast": ["finetune_ast_as20k"],
    "amae compare --systems A": ["Audio-MAE", "AST"],
    "amae convert a b --kind m2d": ["m2d", "m2d_finetuned"],
    "amae manifest sp": ["speech_commands"],
    "amae inspect {}/": ["{}/best.pt", "{}/folder"],
    "amae pack {}/": ["{}/folder", "{}/train.tsv"],
}


def test_a_shell_completes_arguments_and_waits_for_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("best.pt", "train.tsv", "notes.txt"):
        (tmp_path / name).touch()
    script = """
import json, os, sys
def end(code):
    raise SystemExit(code)
os._exit = end  # as argcomplete ends a process
from amae_plugin.cli.main import main
os.environ |= {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\\n", "_ARGCOMPLETE_STDOUT_FILENAME": sys.argv[1]}
found = {}
for line in sys.argv[2:]:
    os.environ |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    try:
        main([])
    except SystemExit as ended:
        assert ended.code == 0, line
    with open(sys.argv[1]) as file:
        found[line] = file.read().split()
print(json.dumps([found, sorted(sys.modules)]))
"""
    expected = {
        line.format(tmp_path): sorted(word.format(tmp_path) for word in words) for line, words in COMPLETIONS.items()
    }
    command = [sys.executable, "-c", script, str(tmp_path / "completions"), *expected]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, modules = json.loads(done.stdout)
    assert {line: sorted(word.rstrip("/") for word in words) for line, words in found.items()} == expected
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_that_a_shell_runs_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert ended.value.code == 0
    assert re.search(r"complete .*\bamae\b", capsys.readouterr().out)


def test_choices_are_those_of_the_registries() -> None:
    assert tuple(CONTESTANTS) == choices.CONTESTANTS
    assert set(choices.FRONT_ENDS) == set(FRONT_ENDS)
    assert set(choices.WINDOWS) == set(WINDOWS)
    assert set(choices.MASKINGS) == set(MASKINGS)
    assert choices.EMBEDDINGS == EMBEDDINGS
    assert set(choices.POOLINGS) == set(POOLINGS)
    assert set(choices.PRECISIONS) == set(PRECISIONS)
    assert set(choices.EXPORTS) == set(EXPORTS)
    assert set(choices.MODALITIES) == set(MODALITIES)
    assert set(choices.PACKINGS) == set(PACKINGS)
    assert {name: kind.title for name, kind in PUBLISHED.items()} == choices.PUBLISHED


@pytest.mark.parametrize("recipe", [recipe for recipe in CONTESTANTS.values() if recipe])
def test_contestants_have_recipes(recipe: str) -> None:
    assert (ROOT / "config" / f"{recipe}.yaml").is_file()


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "amae_plugin", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"amae_plugin {version('amae-plugin')}\n"


def test_a_device_that_this_machine_lacks_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--device", "cuda:99"]) == 2
    assert "device cuda:99: PyTorch finds no such GPU" in capsys.readouterr().err


def test_workers_are_as_many_as_the_processors_that_a_job_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {5}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    parser = argparse.ArgumentParser()
    importlib.import_module("amae_plugin.cli.evaluate").add_arguments(parser)
    assert parser.parse_args(["a.pt", "--data", "b"]).workers == 1
