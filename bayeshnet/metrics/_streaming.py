"""The mean of a score over the rows of many batches, as a torchmetrics ``Metric``."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from bayeshnet.typing import Scalar

__all__ = ["MeanMetric"]


class MeanMetric(Metric):
    """The mean of one number per entry, over any number of batches.

    A subclass calls :meth:`add` in its ``update``. The sum has the precision of what is added: float64 stays float64.

    Example:
        >>> class MeanError(MeanMetric):
        ...     def update(self, f, y):
        ...         self.add(f - y)
        >>> metric = MeanError()
        >>> metric.update(torch.ones(4), torch.zeros(4))
        >>> metric.compute()
        tensor(1.)
    """

    full_state_update = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Add the scores of a batch."""
        # Not in place: `+=` would round a float64 sum to the float32 of the initial state.
        self.total = self.total + values.sum()
        self.count = self.count + values.numel()

    def compute(self) -> Scalar:
        """The mean of everything added so far."""
        return self.total / self.count
