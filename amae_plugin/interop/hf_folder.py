"""Encoders and classifiers as folders of Hugging Face's transformers: settings, weights, and code that imports this."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.inference.model import AudioClassifier, Spectrogram, audio_model
from amae_plugin.interop import hf_code
from amae_plugin.interop.formats import Format
from amae_plugin.models.base import Model

if TYPE_CHECKING:
    from amae_plugin.interop.hf_model import AmaePreTrainedModel

_CODE = ("configuration_amae.py", "feature_extraction_amae.py", "modeling_amae.py")
_LOADING = """```python
from transformers import AutoFeatureExtractor, {auto}

extractor = AutoFeatureExtractor.from_pretrained("{folder}", trust_remote_code=True)
model = {auto}.from_pretrained("{folder}", trust_remote_code=True).eval()
inputs = extractor(waveforms, sampling_rate={rate}, return_tensors="pt")
output = model(**inputs)
{result}
```

`waveforms` is a list of clips (samples,) of any length with a full scale of 1. {meaning}

The code in this folder imports amae_plugin, without fairseq. In a checkout of its repository:

```bash
pip install --no-deps -e . && pip install transformers torchaudio soundfile wrapt
```
"""


class HuggingFace(Format):
    """Folder that the Auto classes of transformers load with ``trust_remote_code=True``."""

    name = "hf"
    library = "transformers"
    packages = ("transformers",)
    files = ("config.json", "model.safetensors", "preprocessor_config.json", *_CODE)
    takes_log_mel = False

    def __init__(self, checkpoint: Checkpoint, model: Model):
        super().__init__(checkpoint, model)
        self.audio_model = audio_model(checkpoint, model=model)

    @override
    def write(self, folder: Path) -> None:
        from amae_plugin.interop.hf_model import AmaeConfig, AmaeFeatureExtractor

        config = AmaeConfig.of(self.checkpoint, self.model)
        kind = self._kind
        config.auto_map = {
            "AutoConfig": "configuration_amae.AmaeConfig",
            "AutoModel": "modeling_amae.AmaeModel",
            self._auto: f"modeling_amae.{kind.__name__}",
        }
        wrapped = kind(config)
        wrapped.load(self.model)
        with _no_progress():
            wrapped.save_pretrained(folder)
        auto_map = {"AutoFeatureExtractor": "feature_extraction_amae.AmaeFeatureExtractor"}
        AmaeFeatureExtractor.of(self.checkpoint.input.front_end, auto_map=auto_map).save_pretrained(folder)
        for name in _CODE:
            shutil.copyfile(Path(hf_code.__path__[0]) / name, folder / name)

    @override
    @torch.inference_mode()
    def expected(self, source: Tensor) -> Tensor:
        clips = [Spectrogram(clip) for clip in self.checkpoint.input.denormalize(source)]
        if isinstance(self.audio_model, AudioClassifier):
            return torch.cat([logits for _, logits in self.audio_model.logits(clips)])
        return torch.stack([states[-1] for states, _ in self.audio_model.encode(clips)])

    @override
    @torch.inference_mode()
    def outputs(self, folder: Path, source: Tensor) -> Tensor:
        with _no_progress():
            loaded = self._kind.from_pretrained(folder)
        output = loaded(self.checkpoint.input.denormalize(source))
        return output.logits if self._is_classifier else output.last_hidden_state

    @override
    def loading(self, folder: str) -> str:
        if self._is_classifier:
            result = "output.logits  # (clips, classes)"
            meaning = "The probabilities of a longer clip than the model's input are means over its windows."
        else:
            width = self.audio_model.embed_dim
            result = f"output.pooler_output, output.last_hidden_state  # (clips, {width}), (clips, steps, {width})"
            meaning = "`output.attention_mask` (clips, steps) marks the time steps of each clip."
        return _LOADING.format(
            auto=self._auto, folder=folder, rate=self.checkpoint.input.sample_rate, result=result, meaning=meaning
        )

    @property
    def _is_classifier(self) -> bool:
        return isinstance(self.audio_model, AudioClassifier)

    @property
    def _auto(self) -> str:
        return "AutoModelForAudioClassification" if self._is_classifier else "AutoModel"

    @property
    def _kind(self) -> "type[AmaePreTrainedModel]":
        from amae_plugin.interop.hf_model import AmaeForAudioClassification, AmaeModel

        return AmaeForAudioClassification if self._is_classifier else AmaeModel


@contextmanager
def _no_progress() -> Iterator[None]:
    """Keep back the progress bars of transformers, each of which lasts a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
