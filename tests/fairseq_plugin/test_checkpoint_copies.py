from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amae_plugin.fairseq_plugin.checkpoints import copy_atomically, remove_partial_files

SIZE = 32 * 2**20


def test_copy_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    sources = {name: name.encode() * SIZE for name in "ab"}
    for name, content in sources.items():
        (tmp_path / name).write_bytes(content)
    last = tmp_path / "checkpoint_last.pt"
    script = (
        "import sys, itertools\n"
        "from amae_plugin.fairseq_plugin.checkpoints import copy_atomically\n"
        "for name in itertools.cycle('ab'):\n"
        "    copy_atomically(f'{sys.argv[1]}/{name}', f'{sys.argv[1]}/checkpoint_last.pt')\n"
        "    print(name, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.read_bytes() in sources.values()

    remove_partial_files(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "checkpoint_last.pt"]


def test_copy_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        copy_atomically(str(tmp_path / "missing.pt"), str(last))
    assert last.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [last]
