"""Simulation-based calibration: is the truth's rank among posterior draws uniform?

Talts et al., Validating Bayesian Inference Algorithms with Simulation-Based Calibration, 2018
(https://arxiv.org/abs/1804.06788). With weights from the prior and data from the model, the rank of a true function
value among L independent draws of its exact posterior is uniform on 0..L.
"""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor, nn

__all__ = ["Blocks", "chi_square_p_values", "ranks", "smallest_p_value"]


def ranks(draws: Tensor, truth: Tensor) -> Tensor:
    """How many of the draws ``[L, ...]`` lie below the truth ``[...]``: whole numbers 0..L."""
    return (draws < truth).sum(0)


def chi_square_p_values(rank: Tensor, num_draws: int, bins: int) -> Tensor:
    """The chi-square test of uniformity of ranks ``[simulations, values]``, one p-value per function value.

    Args:
        rank: Ranks among ``num_draws`` draws; those of different simulations are independent.
        num_draws: L; ``bins`` has to divide ``L + 1``, so that all bins are equally likely.
        bins: Number of bins.
    """
    if (num_draws + 1) % bins:
        raise ValueError(f"{bins} bins do not divide {num_draws + 1} ranks")
    which = rank * bins // (num_draws + 1)
    counts = nn.functional.one_hot(which, bins).sum(0).double()
    expected = rank.shape[0] / bins
    statistic = (counts - expected).square().sum(-1) / expected
    return torch.as_tensor(stats.chi2.sf(statistic.numpy(), bins - 1))


def smallest_p_value(rank: Tensor, num_draws: int, bins: int) -> float:
    """The smallest p-value times the number of tests (Bonferroni): below 0.01 calibration is rejected at 1 %."""
    values = chi_square_p_values(rank, num_draws, bins)
    return float(values.min()) * len(values)


class Blocks(nn.Module):
    """R independent networks 1-k-1 (tanh) as one, so that one fit is R simulations.

    A row ``(r, x)`` goes through network r alone: its features have a block of their own among R k, and are 0
    elsewhere, so posteriors of different blocks are independent. The last operation is a linear layer.
    """

    def __init__(self, num: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num, width))
        self.bias = nn.Parameter(torch.randn(num, width))
        self.head = nn.Linear(num * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        own = nn.functional.one_hot(x[:, 0].round().long(), self.weight.shape[0]).to(x.dtype)
        hidden = torch.tanh(x[:, 1:] * (own @ self.weight) + own @ self.bias)
        return self.head((own.unsqueeze(-1) * hidden.unsqueeze(-2)).flatten(-2))
