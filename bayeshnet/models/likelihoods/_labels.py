"""Class labels, and what is said of one that does not exist."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError

__all__ = ["LabelDistribution", "refuse_labels"]


class LabelDistribution(dist.Categorical):
    """Labels; one that does not exist is named even where Pyro's validation is off.

    Args:
        logits: The logits ``[..., C]``.
        ignore_index: A label that means there is none: its log-probability is 0.

    Example:
        >>> LabelDistribution(logits=torch.zeros(2, 3)).log_prob(torch.tensor([0, 2])).exp()
        tensor([0.3333, 0.3333])
    """

    def __init__(self, logits: Tensor, *, ignore_index: int | None = None, validate_args: bool | None = None) -> None:
        self.ignore_index = ignore_index
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LabelDistribution:
        """The same distribution for every place of ``batch_shape``."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.ignore_index = self.ignore_index
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability."""
        if self.ignore_index is None:
            return self._log_prob(value)
        ignored = value == self.ignore_index
        log_prob = self._log_prob(torch.where(ignored, torch.zeros_like(value), value))
        return torch.where(ignored, torch.zeros_like(log_prob), log_prob)

    def _log_prob(self, value: Tensor) -> Tensor:
        try:
            return super().log_prob(value)
        except (RuntimeError, IndexError, ValueError):  # of gathering, or of the validation
            refuse_labels(value, int(self.logits.shape[-1]))
            raise


def refuse_labels(y: Tensor, num: int) -> None:
    """Raise unless all labels are among ``0..num - 1``.

    Raises:
        ArgumentError: If there are others.

    Example:
        >>> refuse_labels(torch.tensor([0, 2]), 3)
    """
    bad = (y < 0) | (y >= num)
    if not bool(bad.any()):
        return
    said = " Labels such as -100 do not mean 'ignored' here, unless Categorical(ignore_index=...) says so."
    ignored = said if bool((y < 0).any()) else ""
    raise ArgumentError(
        f"y: holds labels {y.min().item():g}..{y.max().item():g}; the network gives {num} logits, so labels have to be "
        f"0..{num - 1}.{ignored}"
    )
