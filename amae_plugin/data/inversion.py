"""Log-mel spectrogram to waveform: an approximate inverse of the front end."""

import math

import torch
from torch import Tensor

from amae_plugin.data._torchaudio import torchaudio
from amae_plugin.data.log_mel import FLOOR, PREEMPHASIS, FrontEnd, LogMel

_SHARING_STEPS = 10  # enough for the bands of speech to fit to 0.05 dB on average
_GRIFFIN_LIM_STEPS = 60
_LEAD = 2  # frames added at either end, to put the clip's ends under whole windows


def invert(log_mel: Tensor, features: FrontEnd, samples: int, seed: int = 0) -> Tensor:
    """Make a waveform whose log-mel spectrogram is close to the given one.

    The power of the bands is divided among the bins of the spectrum, Griffin-Lim (Griffin and Lim 1984, in the fast
    form of Perraudin et al. 2013) finds phases that fit the magnitudes, and the pre-emphasis is undone. The mean that
    the front end takes from each window is lost.

    Args:
        log_mel: (frames, num_mel_bins), as ``features`` computes it.
        features: the front end, Kaldi's.
        samples: length of the waveform, about that of ``frames`` windows.
        seed: random seed of the phases that Griffin-Lim begins with.

    Returns:
        (samples,) float32, as loud as the waveform that the spectrogram was made from.

    Raises:
        ValueError: the front end is not Kaldi's.
    """
    if not isinstance(features, LogMel):
        raise ValueError(f"the front end '{features.name}' has no inverse here; that of '{LogMel.name}' has one")
    # Powers relative to the loudest value, so that no level is out of range, and above that of digital silence.
    loudest = float(log_mel.max())
    mel = ((log_mel - loudest).exp() - math.exp(min(FLOOR - loudest, 0.0))).clamp(min=0)
    power = _share_out(mel, features.mel_filters)
    shift = features.shift_samples
    tail = max(math.ceil(samples / shift) - len(power), 0) + _LEAD
    power = torch.cat([power[:1].expand(_LEAD, -1), power, power[-1:].expand(tail, -1)])
    sizes = {"n_fft": features.fft_size, "win_length": features.window_samples, "hop_length": shift}
    griffin_lim = torchaudio.transforms.GriffinLim(
        n_iter=_GRIFFIN_LIM_STEPS, window_fn=lambda size: features.window, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        emphasised = griffin_lim(power.T)
    # Kaldi's frames begin at multiples of the shift; PyTorch's are centred there.
    start = _LEAD * shift - features.window_samples // 2
    coefficients = torch.tensor([[1.0, -PREEMPHASIS], [1.0, 0.0]])
    waveform = torchaudio.functional.lfilter(emphasised[start : start + samples], *coefficients, clamp=False)
    return waveform * math.exp(loudest / 2)


def _share_out(mel: Tensor, filters: Tensor) -> Tensor:
    """Find a power spectrum (frames, bins), nowhere negative, with about the given mel bands (frames, bands).

    Richardson-Lucy deconvolution, which minimises the Kullback-Leibler divergence of the bands. Low bands are narrower
    than the distance between bins, so they do not determine the spectrum, and some sets of values cannot be met.
    """
    tiny = torch.finfo(mel.dtype).tiny
    of_bands, of_bins = filters.sum(0).clamp(min=tiny), filters.sum(1).clamp(min=tiny)
    power = (mel / of_bands) @ filters.T
    for _ in range(_SHARING_STEPS):
        power = power * ((mel / (power @ filters).clamp(min=tiny)) @ filters.T) / of_bins
    return power
