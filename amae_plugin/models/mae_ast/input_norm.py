"""Input normalisation: a batch norm over whole spectrograms instead of a corpus's statistics."""

import torch
from torch import Tensor, nn

_SCALE = 0.5  # standard deviation of AST's input


class InputNorm(nn.Module):
    """Normalisation of log-mel spectrograms to mean 0 and standard deviation 0.5 (Baade et al. 2022).

    The same function as PyTorch's ``BatchNorm2d`` of one channel, without weights, times 0.5, except that frames beyond
    a clip's end do not count. Training uses the statistics of the batch, evaluation the running ones.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        # Published checkpoints hold the shapes and names of PyTorch's own batch norm.
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, source: Tensor, padding_mask: Tensor | None = None, learned: bool = False) -> Tensor:
        """Normalise (B, T, F) in float32.

        Args:
            source: log-mel values.
            padding_mask: (B, T) bool, True = beyond the clip's end; these frames become 0, the mean.
            learned: use the running statistics in training too, and leave them as they are.
        """
        source = source.float()
        padded = None if padding_mask is None else padding_mask[:, :, None]
        of_batch = self.training and not learned
        mean, var = self._batch_statistics(source, padded) if of_batch else (self.running_mean, self.running_var)
        x = (source - mean) * ((var + self.eps).rsqrt() * _SCALE)
        return x if padded is None else x.masked_fill(padded, 0.0)

    def inverse(self, x: Tensor) -> Tensor:
        """Return the values, of any shape, that evaluation mode maps to ``x``."""
        return x / _SCALE * (self.running_var + self.eps).sqrt() + self.running_mean

    def _batch_statistics(self, source: Tensor, padded: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mean and the biased variance of the valid frames, and update the running statistics."""
        if padded is None:
            count = torch.full((), source.numel(), device=source.device)
            var, mean = torch.var_mean(source, correction=0)
        else:
            count = ((~padded).sum() * source.shape[2]).clamp(min=1)
            mean = source.masked_fill(padded, 0.0).sum() / count
            var = (source - mean).masked_fill(padded, 0.0).square().sum() / count
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.expand(1), self.momentum)
            self.running_var.lerp_(unbiased.expand(1), self.momentum)
            self.num_batches_tracked += 1
        return mean, var
