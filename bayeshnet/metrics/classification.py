"""Scores of predictive class probabilities."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError
from bayeshnet.metrics._checks import check_probabilities
from bayeshnet.metrics._streaming import MeanMetric
from bayeshnet.typing import ClassProbabilities, Labels, RowValues, Scalar

__all__ = [
    "BrierScore",
    "ExpectedCalibrationError",
    "brier_score",
    "classification_scores",
    "expected_calibration_error",
]


def brier_score(
    probs: ClassProbabilities, labels: Labels, *, reduction: Literal["mean", "none"] = "mean"
) -> Scalar | RowValues:
    """Squared distance of the probabilities to the one-hot label, ``sum_c (p_c - 1[c = label])^2`` (Brier, 1950).

    Summed over all C classes, so it ranges from 0 to 2 and for two classes is twice the score of a single probability.

    Args:
        probs: Predictive probabilities ``[B, C]``.
        labels: Classes ``[B]``, whole numbers from 0 to C - 1.
        reduction: ``"mean"``, or ``"none"`` for the score of each row.

    Returns:
        A scalar, or ``[B]``. Lower is better.

    Raises:
        ArgumentError: If the shapes do not fit, rows do not sum to one, or a label is out of range.

    Example:
        >>> import torch
        >>> round(brier_score(torch.tensor([[0.75, 0.25]]), torch.tensor([0])).item(), 4)
        0.125
    """
    if reduction not in ("mean", "none"):
        raise ArgumentError(f"reduction: is {reduction!r}; pass 'mean' or 'none'.")
    probs, labels = check_probabilities(probs, labels)
    # sum p^2 - 2 p_label + 1, without building the one-hot table.
    scores = probs.square().sum(-1) - 2 * _of_label(probs, labels) + 1
    return scores.mean() if reduction == "mean" else scores


def expected_calibration_error(probs: ClassProbabilities, labels: Labels, *, num_bins: int = 15) -> Scalar:
    r"""Mean gap between confidence and accuracy, over bins of equal width (Guo et al., ICML 2017).

    .. math::
        \mathrm{ECE} = \sum_m \frac{|B_m|}{B} \, |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|

    The confidence of a row is its greatest probability. Not a proper score (predicting the class frequencies for every
    row gives about 0) and biased upwards on small test sets, the more so the more bins: report it beside the Brier
    score, and compare only with the same bins and the same rows.

    Args:
        probs: Predictive probabilities ``[B, C]``.
        labels: Classes ``[B]``, whole numbers from 0 to C - 1.
        num_bins: Number of bins between 0 and 1.

    Returns:
        A scalar between 0 and 1.

    Raises:
        ArgumentError: If the shapes do not fit, rows do not sum to one, or a label or ``num_bins`` is out of range.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.8, 0.2], [0.8, 0.2]])
        >>> round(expected_calibration_error(probs, torch.tensor([0, 1])).item(), 4)
        0.3
    """
    return _gap(*_bin_sums(probs, labels, _check_bins(num_bins)))


class BrierScore(MeanMetric):
    """Mean of :func:`brier_score` over any number of batches.

    Example:
        >>> import torch
        >>> metric = BrierScore()
        >>> metric.update(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]))
        >>> metric.compute().item()
        0.25
    """

    higher_is_better = False

    def update(self, probs: ClassProbabilities, labels: Labels) -> None:
        """Add a batch: probabilities ``[B, C]``, classes ``[B]``."""
        self.add(brier_score(probs, labels, reduction="none"))


class ExpectedCalibrationError(Metric):
    """:func:`expected_calibration_error` over any number of batches, in memory that does not grow with them.

    It keeps three sums for each bin, where ``torchmetrics.CalibrationError`` keeps every row; the result is the same.

    Args:
        num_bins: Number of bins between 0 and 1.

    Example:
        >>> import torch
        >>> metric = ExpectedCalibrationError()
        >>> metric.update(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> round(metric.compute().item(), 4)
        0.3
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    count: Tensor
    confidence: Tensor
    correct: Tensor

    def __init__(self, *, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = _check_bins(num_bins)
        for name in ("count", "confidence", "correct"):
            self.add_state(name, default=torch.zeros(num_bins), dist_reduce_fx="sum")

    def update(self, probs: ClassProbabilities, labels: Labels) -> None:
        """Add a batch: probabilities ``[B, C]``, classes ``[B]``."""
        count, confidence, correct = _bin_sums(probs, labels, self.num_bins)
        self.count = self.count + count
        self.confidence = self.confidence + confidence
        self.correct = self.correct + correct

    def compute(self) -> Scalar:
        """The error over everything seen."""
        return _gap(self.count, self.confidence, self.correct)


def classification_scores(probs: ClassProbabilities, labels: Labels, *, num_bins: int = 15) -> dict[str, float]:
    """The usual scores of a classification at once, as plain numbers for a table.

    Args:
        probs: Predictive probabilities ``[B, C]``, averaged over draws.
        labels: Classes ``[B]``, whole numbers from 0 to C - 1.
        num_bins: Number of bins of the calibration error.

    Returns:
        ``"accuracy"``, ``"nll"`` (mean of ``-log p_label`` in nats; infinite where a class that occurs was ruled out),
        ``"brier"`` and ``"ece"``.

    Raises:
        ArgumentError: If the shapes do not fit, rows do not sum to one, or a label or ``num_bins`` is out of range.

    Example:
        >>> import torch
        >>> scores = classification_scores(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'accuracy': 1.0, 'nll': 0.347, 'brier': 0.25, 'ece': 0.25}
    """
    probs, labels = check_probabilities(probs, labels)
    return {
        "accuracy": (probs.argmax(-1) == labels).to(probs.dtype).mean().item(),
        "nll": -_of_label(probs, labels).log().mean().item(),
        "brier": brier_score(probs, labels).item(),
        "ece": expected_calibration_error(probs, labels, num_bins=num_bins).item(),
    }


def _of_label(probs: Tensor, labels: Tensor) -> Tensor:
    return probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _check_bins(num_bins: int) -> int:
    require_count("num_bins", num_bins)
    return num_bins


def _bin_sums(probs: Tensor, labels: Tensor, num_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Number of rows, sum of confidences and number of right answers in each bin, each ``[num_bins]``."""
    probs, labels = check_probabilities(probs, labels)
    confidence, answer = probs.max(-1)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=probs.dtype, device=probs.device)
    # Bins hold their lower edge and not their upper one, except the last, which holds 1 too.
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, num_bins - 1)
    zeros = torch.zeros(num_bins, dtype=probs.dtype, device=probs.device)
    return (
        zeros.index_add(0, bins, torch.ones_like(confidence)),
        zeros.index_add(0, bins, confidence),
        zeros.index_add(0, bins, (answer == labels).to(probs.dtype)),
    )


def _gap(count: Tensor, confidence: Tensor, correct: Tensor) -> Tensor:
    return (correct - confidence).abs().sum() / count.sum()
