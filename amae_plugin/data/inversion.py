"""Log-mel spectrogram to waveform: the front end undone as far as it can be, with phases that fit the magnitudes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amae_plugin.data._torchaudio import torchaudio
from amae_plugin.data.log_mel import FLOOR, PREEMPHASIS, LogMel

_SHARING_STEPS = 10  # after which the bands of speech fit to 0.05 dB on average
_GRIFFIN_LIM_STEPS = 60
_LEAD = 2  # frames in front of the first and after the last, so that the clip's ends lie under whole windows


def invert(log_mel: Tensor, features: LogMel, samples: int, seed: int = 0) -> Tensor:
    """A waveform whose log-mel spectrogram is about the given one.

    The bands' power is shared out among the bins of the spectrum, Griffin-Lim (Griffin and Lim 1984, in the fast form
    of Perraudin et al. 2013) finds phases, and the pre-emphasis is undone. The mean that the front end takes from the
    waveform and from each window is lost.

    Args:
        log_mel: (frames, num_mel_bins), as ``features`` computes it.
        features: the front end.
        samples: length of the waveform, about that of ``frames`` windows.
        seed: of the phases that Griffin-Lim begins with.

    Returns:
        (samples,) float32, as loud as what the spectrogram was made from.
    """
    # Relative to the loudest value, so that no level is out of range; silence becomes none at all.
    loudest = float(log_mel.max())
    mel = ((log_mel - loudest).exp() - math.exp(min(FLOOR - loudest, 0.0))).clamp(min=0)
    power = _share_out(mel, features.mel_filters)
    shift = features.shift_samples
    tail = max(math.ceil(samples / shift) - len(power), 0) + _LEAD
    power = torch.cat([power[:1].expand(_LEAD, -1), power, power[-1:].expand(tail, -1)])
    griffin_lim = torchaudio.transforms.GriffinLim(
        n_fft=features.fft_size,
        n_iter=_GRIFFIN_LIM_STEPS,
        win_length=features.window_samples,
        hop_length=shift,
        window_fn=lambda size: features.window,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        emphasised = griffin_lim(power.T)
    # Kaldi's frames begin where they are counted from, PyTorch's have their middle there.
    start = _LEAD * shift - features.window_samples // 2
    emphasised = emphasised[start : start + samples]
    coefficients = torch.tensor([[1.0, -PREEMPHASIS], [1.0, 0.0]])
    waveform = torchaudio.functional.lfilter(emphasised, *coefficients, clamp=False)
    return waveform * math.exp(loudest / 2)


def _share_out(mel: Tensor, filters: Tensor) -> Tensor:
    """Power spectrum (frames, bins), nowhere negative, whose mel bands are about the given ones (frames, bands).

    Richardson-Lucy deconvolution, which minimises the Kullback-Leibler divergence of the bands. Low bands are narrower
    than the bins are apart, so they do not determine the spectrum, nor can every set of values be met.
    """
    tiny = torch.finfo(mel.dtype).tiny
    of_bands, of_bins = filters.sum(0).clamp(min=tiny), filters.sum(1).clamp(min=tiny)
    power = (mel / of_bands) @ filters.T
    for _ in range(_SHARING_STEPS):
        power = power * ((mel / (power @ filters).clamp(min=tiny)) @ filters.T) / of_bins
    return power
