"""Files of weights are read without running what they name."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import save_file

from amae_plugin.errors import UserError
from amae_plugin.weight_files import UnsafeFileError, read_weights, unwrapped

STATE = {"a": torch.arange(3.0)}


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def save(path: Path, *, legacy: bool = False, protocol: int = 2, **more: Any) -> Path:
    torch.save({"model": STATE, **more}, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_plain_values_and_the_arguments_of_a_script_are_read(tmp_path: Path, legacy: bool) -> None:
    args = argparse.Namespace(lr=0.1, betas=[0.9, 0.95])
    content = read_weights(save(tmp_path / "x.pth", legacy=legacy, args=args, epoch=3))
    assert torch.equal(content["model"]["a"], STATE["a"])
    assert content["args"] == args and content["epoch"] == 3


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    assert torch.equal(read_weights(tmp_path / "x.safetensors")["a"], STATE["a"])


@pytest.mark.parametrize("legacy", [False, True])
def test_what_would_run_code_is_named_and_nothing_is_run(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # which changes PyTorch's default
    path = save(tmp_path / "x.pth", legacy=legacy, more=Trap(tmp_path / "made"))
    with pytest.raises(UnsafeFileError, match=r"x\.pth: holds more than tensors and plain values: \w+\.mkdir;"):
        read_weights(path)
    assert not (tmp_path / "made").exists()
    read_weights(path, trust=True)
    assert (tmp_path / "made").is_dir()


def test_containers_with_a_reader_of_their_own_are_not_harmless(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", cfg=OmegaConf.create({"a": "${oc.env:HOME}"}))
    with pytest.raises(UnsafeFileError, match=r"omegaconf\.dictconfig\.DictConfig"):
        read_weights(path)
    assert "a" in read_weights(path, trust=True)["cfg"]


def test_a_pickle_that_the_safe_reader_does_not_know_is_not_called_damaged(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", protocol=4, more=Trap(tmp_path / "made"))
    with pytest.raises(UnsafeFileError, match="pickled in a way that PyTorch's safe reader does not know"):
        read_weights(path)
    assert not (tmp_path / "made").exists()


def test_a_namespace_with_a_trap_inside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match="mkdir"):
        read_weights(save(tmp_path / "x.pt", args=argparse.Namespace(x=Trap(tmp_path / "made"))))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("member", ["../../evil.txt", "/evil.txt", "x/../../evil.txt"])
def test_an_archive_with_a_member_outside_of_it_is_refused(tmp_path: Path, member: str) -> None:
    path = save(tmp_path / "x.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "evil")
    with pytest.raises(UserError, match=rf"x\.pt: not a checkpoint: its member '{member}' leads out of the archive"):
        read_weights(path, trust=True)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pt").read_bytes()
    contents = {
        "empty.pt": b"",
        "text.pt": b"hello " * 100,
        "torn.pt": whole[: len(whole) // 2],
        "object.pt": pickle.dumps({"a": 1}, protocol=2),
        "x.safetensors": b"hello " * 100,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not a checkpoint, or a damaged one \("):
            read_weights(tmp_path / name)
    for content in (
        b"<!DOCTYPE html>\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "é\n".encode(),
    ):
        for name in ("text.pt", "x.safetensors"):
            (tmp_path / name).write_bytes(b"a " + content)
            with pytest.raises(UserError, match=rf"{name}: .* \(it is text: a "):
                read_weights(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("model.pt", whole)
    with pytest.raises(UserError, match=r"zip\.pt: not a checkpoint, but an archive of other files"):
        read_weights(tmp_path / "zip.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match="TorchScript"):
        read_weights(tmp_path / "script.pt")
    for name in ("none.pt", "."):
        with pytest.raises(UserError, match="cannot read the checkpoint"):
            read_weights(tmp_path / name)


def flip(path: Path, value: bytes) -> None:
    """Change one bit in the middle of a value that the file holds once."""
    content = path.read_bytes()
    assert content.count(value) == 1
    place = content.index(value) + len(value) // 2
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.arange(3.0, 9.0), "its tensor model.b"),
        (torch.arange(10.0, 20.0), "its tensor more.inner.0"),
        (torch.arange(20.0, 30.0), "its tensor args.weights"),
        (b"eleven", "its member 'archive/data.pkl'"),
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_changed_bits_are_found_by_the_checksums(tmp_path: Path, value: Any, what: str, trust: bool) -> None:
    path = tmp_path / "x.pt"
    content = {
        "model": {**STATE, "b": torch.arange(3.0, 9.0)[2:].view(2, 2), "c": torch.zeros(0), "d": torch.arange(9) > 3},
        "more": {"inner": [torch.arange(10.0, 20.0), "eleven"]},
        "args": argparse.Namespace(weights=torch.arange(20.0, 30.0)),
    }
    content["model"]["e"] = content["model"]["d"][:2]  # shares memory
    with path.open("wb") as file:
        torch.save(content, file)
    read_weights(path, trust=trust)
    flip(path, value if isinstance(value, bytes) else value.numpy().tobytes())
    with pytest.raises(UserError, match=rf"x\.pt: its content differs from its own checksums.*\({re.escape(what)}\)$"):
        read_weights(path, trust=trust)


def test_the_state_of_an_optimizer_is_neither_checked_nor_returned(tmp_path: Path) -> None:
    for name in ("last_optimizer_state", "optimizer", "optimizer_states"):
        path = save(tmp_path / "x.pt", **{name: {"exp_avg": torch.arange(30.0, 40.0)}})
        flip(path, torch.arange(30.0, 40.0).numpy().tobytes())
        assert set(read_weights(path)) == {"model"}


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(path)["model"]["a"], STATE["a"])


def test_a_repacked_archive_is_not_read_as_if_it_were_not_compressed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", b=torch.zeros(1000))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"y\.pt: "):
        read_weights(tmp_path / "y.pt")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: cannot read the checkpoint \(not a regular file\)"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a.b", "module.module.c"], ["a.b", "module.c"]),
        (["_orig_mod.a", "blocks.0._orig_mod.b"], ["a", "blocks.0.b"]),
        (["model.a", "model.model.b"], ["a", "model.b"]),
        (["module._orig_mod.model.a", "module._orig_mod.model.b"], ["a", "b"]),
        (["model._orig_mod.module.a"], ["a"]),
        (["model.a", "b"], ["model.a", "b"]),
        (["a", "_orig_mod.a"], ["a", "_orig_mod.a"]),
        ([], []),
    ],
)
def test_names_behind_those_of_wrappers(names: list[str], expected: list[str]) -> None:
    state = {name: torch.tensor(number) for number, name in enumerate(names)}
    found = unwrapped(state)
    assert list(found) == expected
    assert [int(value) for value in found.values()] == list(range(len(names)))


@settings(max_examples=60)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), legacy=st.booleans())
def test_a_damaged_byte_is_read_or_refused_but_never_runs_anything(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, legacy: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = save(folder / "x.pt", legacy=legacy, args=argparse.Namespace(a=1))
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        read_weights(path)
    except UserError as error:
        assert str(path) in str(error)
    assert list(folder.iterdir()) == [path]
