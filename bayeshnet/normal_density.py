"""The standard normal density."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["LOG_2PI", "log_standard_normal"]

LOG_2PI = math.log(2.0 * math.pi)


def log_standard_normal(noise: Tensor) -> Tensor:
    """Return the log-density ``[...]`` of vectors ``[..., n]`` under N(0, I).

    Example:
        >>> import torch
        >>> log_standard_normal(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * LOG_2PI)
