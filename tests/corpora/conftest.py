import av
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


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """Writes one video, of two frames a second that get brighter, with sound or a picture left out if asked."""

    def video(path, seconds=0.5, picture=True, sound=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", format="matroska") as container:
            images = container.add_stream("mpeg4", rate=2) if picture else None
            sounds = container.add_stream("pcm_s16le", rate=8_000, layout="mono") if sound else None
            if images is not None:
                images.width, images.height, images.pix_fmt = 32, 32, "yuv420p"
                for number in range(max(1, round(seconds * 2))):
                    pixels = np.full((32, 32, 3), min(255, number * 10), np.uint8)
                    container.mux(images.encode(av.VideoFrame.from_ndarray(pixels)))
                container.mux(images.encode(None))
            if sounds is not None:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, int(seconds * 8_000)), np.int16), "s16", "mono")
                frame.sample_rate = 8_000
                resampler = av.AudioResampler("s16", "mono", 8_000, 4096)
                for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                    container.mux(sounds.encode(piece))
                container.mux(sounds.encode(None))

    return video
