"""Class labels, and what is said of one that does not exist."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from bayeshnet.errors import ArgumentError

__all__ = ["Labels", "refuse_labels"]


class Labels(dist.Categorical):
    """Labels; one that does not exist is named even where Pyro's validation is off.

    Example:
        >>> import torch
        >>> Labels(logits=torch.zeros(2, 3)).log_prob(torch.tensor([0, 2])).exp()
        tensor([0.3333, 0.3333])
    """

    def log_prob(self, value: Tensor) -> Tensor:
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
        >>> import torch
        >>> refuse_labels(torch.tensor([0, 2]), 3)
    """
    bad = (y < 0) | (y >= num)
    if not bool(bad.any()):
        return
    ignored = " Labels such as -100 do not mean 'ignored' here: leave those rows out." if bool((y < 0).any()) else ""
    raise ArgumentError(
        f"y: holds labels {y.min().item():g}..{y.max().item():g}; the network gives {num} logits, so labels have to be "
        f"0..{num - 1}.{ignored}"
    )
