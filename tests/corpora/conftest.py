import numpy as np
import pytest
import soundfile

from amae_plugin.data.labels import Labels
from amae_plugin.data.manifest import Manifest


@pytest.fixture(scope="session")
def sound():
    """Writes one file of audio."""

    def sound(path, seconds=0.05, rate=16_000):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(int(seconds * rate)), rate)

    return sound


@pytest.fixture(scope="session")
def rows():
    """Reads one split: (name, labels) of each clip."""

    def rows(out, split):
        manifest = Manifest.read(out / f"{split}.tsv")
        labels = Labels.read(out / f"{split}.lbl", out / "labels.txt", len(manifest), multi=True)
        return [(manifest.name(i), *(labels.names[j] for j in labels[i])) for i in range(len(manifest))]

    return rows
