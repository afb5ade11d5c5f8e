"""Parsers import nothing heavy, and what they offer is what the registries hold."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from amae_plugin.benchmark.step import PRECISIONS
from amae_plugin.cli import choices
from amae_plugin.cli.main import COMMANDS, main
from amae_plugin.corpora.layouts import LAYOUTS
from amae_plugin.corpora.packing import FORMATS as PACKINGS
from amae_plugin.data.log_mel import FRONT_ENDS, WINDOWS
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


def test_choices_are_those_of_the_registries() -> None:
    assert set(choices.FRONT_ENDS) == set(FRONT_ENDS)
    assert set(choices.WINDOWS) == set(WINDOWS)
    assert set(choices.MASKINGS) == set(MASKINGS)
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
