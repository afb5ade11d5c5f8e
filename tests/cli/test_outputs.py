"""Results of commands: the place is tried before the work, and an old result stays until the new one is whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amae_plugin.cli.main import main

# The command, one of its results, and which of its results are written before that.
COMMANDS = {
    "embed": ("embed {classifier} {clips} --out {out}", "x.npz", 0),
    "embed to a folder": ("embed {classifier} {clips} --out {folder}", "0.flac.npz", 0),
    "predict": ("predict {classifier} {clips} --out {out}", "x.csv", 0),
    "predict as JSON": ("predict {classifier} {clips} --out {out}", "x.json", 0),
    "transcribe": ("transcribe {recogniser} {clips} --out {out}", "x.csv", 0),
    "transcribe to subtitles": ("transcribe {recogniser} {clips}/0.flac --out {out}", "x.srt", 0),
    "reconstruct": ("reconstruct {model} {clips}/0.flac --out {folder}", "index.html", 4),
    "evaluate": ("evaluate {classifier} --data {clips} --out {folder}", "confusion.png", 2),
    "evaluate, another file": ("evaluate {classifier} --data {clips} --json {out}", "x.json", 3),
    "convert": ("convert {published} {out}", "x.pt", 0),
    "average": ("average {averaging} --ema --out {out}", "x.pt", 0),
    "export": ("export {classifier} {folder} --format timm", "README.md", 0),
}


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    write_checkpoint: Callable[..., Path],
    write_recogniser: Callable[..., Path],
    write_split: Callable[..., Path],
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    clips = [([label], 0.1, 16_000) for label in ("a", "b")]
    layers = {"attn.qkv": (192, 64), "attn.proj": (64, 64), "mlp.fc1": (256, 64), "mlp.fc2": (64, 256)}
    sizes = {f"blocks.0.{name}": size for name, size in layers.items()} | {"patch_embed.proj": (64, 3, 16, 16)}
    sizes |= dict.fromkeys(("blocks.0.norm1", "blocks.0.norm2", "norm"), (64,))
    vit = {
        f"{name}.{part}": torch.zeros(size[: len(size) if part == "weight" else 1])
        for name, size in sizes.items()
        for part in ("weight", "bias")
    }
    torch.save({**vit, "cls_token": torch.zeros(1, 1, 64), "pos_embed": torch.zeros(1, 17, 64)}, folder / "vit.pth")
    content = torch.load(write_checkpoint(folder / "run" / "averaging.pt", ["a", "b"]))
    torch.save({**content, "extra_state": {"ema": content["model"]}}, folder / "run" / "averaging.pt")
    return {
        "averaging": folder / "run" / "averaging.pt",
        "model": write_checkpoint(folder / "run" / "model.pt", None),
        "classifier": write_checkpoint(folder / "run" / "classifier.pt", ["a", "b"]),
        "recogniser": write_recogniser(folder / "run" / "recogniser.pt"),
        "clips": write_split(folder / "clips", clips, ["a", "b"]),
        "published": folder / "vit.pth",
    }


def run(command: str, inputs: dict[str, Path], out: Path) -> int:
    arguments = command.format(**inputs, out=out, folder=out.parent).split()
    serial = arguments[0] not in ("average", "convert", "export")
    return main([*arguments, "--workers", "0", "--device", "cpu"] if serial else arguments)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "export"])
def test_a_full_disk_leaves_the_old_result(
    name: str,
    inputs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command, file, before = COMMANDS[name]
    path = tmp_path / "out" / file
    path.parent.mkdir()
    path.write_text("old")
    written: list[int] = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)  # of the file that a result is written to
    assert run(command, inputs, path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write" in error and error.endswith("(No space left on device)")
    assert path.read_text() == "old"
    assert not [found for found in tmp_path.rglob("*") if ".tmp" in found.name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    name: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, file, _ = COMMANDS[name]
    (tmp_path / "file").write_text("")
    assert run(command, inputs, tmp_path / "file" / "out" / file) == 2
    output, error = capsys.readouterr()
    assert not output
    assert len(error.splitlines()) == 1 and "cannot write" in error
    assert "(Not a directory)" in error or "(File exists)" in error


@pytest.mark.parametrize(
    "name", ["embed", "predict", "predict as JSON", "evaluate, another file", "convert", "average"]
)
@pytest.mark.parametrize(
    ("make", "reason"), [(Path.mkdir, "Is a directory"), (os.mkfifo, "Not a regular file")], ids=["folder", "fifo"]
)
def test_what_is_no_regular_file_is_not_replaced(
    name: str,
    make: Callable[[Path], None],
    reason: str,
    inputs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, file, _ = COMMANDS[name]
    make(tmp_path / file)
    assert run(command, inputs, tmp_path / file) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / file}: cannot write" in error and f"({reason})" in error
    assert list(tmp_path.iterdir()) == [tmp_path / file]


@pytest.mark.parametrize("name", ["e.npy", "e.CSV"])
def test_no_folder_of_embeddings_gets_the_name_of_another_file(
    name: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(COMMANDS["embed"][0], inputs, tmp_path / name) == 2
    assert "--out" in (error := capsys.readouterr().err) and "FILE.npz" in error
    assert not any(tmp_path.iterdir())


def test_the_memory_does_not_suffice(
    inputs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    )
    for name, raised in zip(("embed", "predict", "reconstruct", "evaluate"), (*errors, errors[0])):

        def fail(*_: object, raised: Exception = raised, **__: object) -> None:
            raise raised

        monkeypatch.setattr("amae_plugin.models.audio_mae.encoder.AudioMAEEncoder.forward", fail)
        command, file, _ = COMMANDS[name]
        assert run(f"{command} --batch-size 7", inputs, tmp_path / name / file) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("amae: the memory of cpu does not suffice for 7 ") and "--batch-size" in error


@pytest.mark.parametrize("command", ["embed", "predict", "reconstruct", "evaluate"])
@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", "mps", "cpu:1"])
def test_every_command_checks_the_device_alike(
    command: str, device: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, file, _ = COMMANDS[command]
    arguments = line.format(**inputs, out=tmp_path / file, folder=tmp_path).split()
    assert main([*arguments, "--device", device]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"amae: device {device}: {'PyTorch finds' if 'cuda' in device else 'must be auto, cpu, '}")
    assert not any(tmp_path.iterdir())
