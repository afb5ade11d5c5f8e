"""Objectives of masked autoencoders, token by token.

Letters in shapes: B clips, L tokens, P values in a patch. Each function returns the loss of every masked token and 0
for every other token. The mean over any set of clips is ``loss.sum() / mask.sum()``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error of every masked token (B, L).

    Args:
        prediction: (B, L, P).
        target: (B, L, P).
        mask: (B, L), True = masked.
    """
    return (prediction - target).square().mean(dim=-1) * mask


def info_nce(classification: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return InfoNCE of every masked token (B, L), which picks its target among the clip's masked targets.

    Scores are dot products, and the softmax of a prediction runs over the targets (Baade et al. 2022). Clips may have
    different numbers of masked tokens.

    Args:
        classification: (B, L, P) predictions.
        target: (B, L, P).
        mask: (B, L), True = masked.
    """
    scores = classification @ target.transpose(1, 2)
    # Not minus infinity, so that a clip without masked tokens has gradient 0 and not NaN.
    among_masked = scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min)
    return (among_masked.logsumexp(dim=-1) - scores.diagonal(dim1=1, dim2=2)) * mask


def cosine(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return 2 - 2 cos of every masked token (B, L), of its prediction and its standardised target (M2D).

    Args:
        prediction: (B, L, D).
        target: (B, L, D); each token is standardised by its own mean and unbiased variance.
        mask: (B, L), True = masked.
    """
    var, mean = torch.var_mean(target, dim=-1, keepdim=True)
    standardised = (target - mean) * (var + 1e-6).rsqrt()
    cosines = (F.normalize(prediction, dim=-1) * F.normalize(standardised, dim=-1)).sum(dim=-1)
    return (2 - 2 * cosines) * mask


def contrastive(one: Tensor, other: Tensor, temperature: float, own: Tensor | None = None) -> Tensor:
    """Return InfoNCE of every clip (B,), which finds itself among N clips by what another modality says of each.

    Scores are cosines over the temperature, and the softmax of a clip runs over all N (Gong et al. 2023, equation 3).

    Args:
        one: (B, D), of one modality.
        other: (N, D), of the other.
        temperature: of the softmax.
        own: (B,) places of the B clips among the N; the same order if None.
    """
    scores = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T / temperature
    if own is None:
        own = torch.arange(len(one), device=one.device)
    return F.cross_entropy(scores, own, reduction="none")


def feature_variance(features: Tensor) -> Tensor:
    """Return the variance of features (..., D) over all but their last dimension, averaged over D: a scalar.

    Models that learn from their own features may collapse: all tokens then get the same features, and this is 0.
    """
    return features.detach().flatten(0, -2).var(dim=0, correction=0).mean()
