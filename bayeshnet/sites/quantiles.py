"""Quantiles of samples."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sample_quantiles"]


def sample_quantiles(samples: Tensor, levels: Tensor) -> Tensor:
    """Quantiles over the first dimension, linearly interpolated.

    Unlike ``torch.quantile`` not limited to 16 million numbers.

    Args:
        samples: ``[S, ...]``.
        levels: ``[Q]`` between 0 and 1.

    Returns:
        ``[Q, ...]``.

    Example:
        >>> sample_quantiles(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 1.5000, 3.0000])
    """
    ordered = samples.sort(dim=0).values
    place = levels.to(torch.double) * (samples.shape[0] - 1)
    below = place.floor().long().clamp(max=samples.shape[0] - 1)
    above = (below + 1).clamp(max=samples.shape[0] - 1)
    share = (place - below).to(samples).reshape((-1,) + (1,) * (samples.dim() - 1))
    return torch.lerp(ordered[below], ordered[above], share)
