"""Nested R-hat: convergence of many short chains."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError

__all__ = ["nested_rhat"]


def nested_rhat(draws: Tensor, num_groups: int) -> Tensor:
    r"""Return nested R-hat :math:`\sqrt{1 + B / W}` of each function (Margossian et al., Bayesian Analysis 2024).

    Chains of a group start at the same place. B is the variance of the means of groups; W is the mean over groups of
    the variance between the chains of a group plus the mean variance within chains. At stationarity B / W is about one
    over the number of independent draws in a group, so that chains may be as short as they are many.

    Args:
        draws: Values of functions ``[N, C, F]``: N draws of C chains, group after group.
        num_groups: Number of groups; it divides C.

    Returns:
        ``[F]``, float64; 1 for a function without any variance.

    Raises:
        ArgumentError: If there are fewer than two draws or groups, or groups differ in size.

    Example:
        >>> rhat = nested_rhat(torch.randn(20, 64, 3, generator=torch.Generator().manual_seed(0)), 16)
        >>> bool((rhat < 1.02).all())
        True
    """
    if draws.dim() != 3 or len(draws) < 2:
        raise ArgumentError(f"draws: has shape {tuple(draws.shape)}; pass [N, C, F] with at least two draws.")
    chains = draws.shape[1]
    if num_groups < 2 or chains % num_groups:
        raise ArgumentError(f"num_groups: is {num_groups}; pass a number from 2 that divides the {chains} chains.")
    values = draws.double().unflatten(1, (num_groups, -1))  # [N, K, M, F]
    of_chains = values.mean(0)
    between = of_chains.mean(1).var(0)
    within = values.var(0).mean((0, 1))
    if of_chains.shape[1] > 1:
        within = within + of_chains.var(1).mean(0)
    ratio = torch.where(between > 0, between / within, torch.zeros_like(between))
    return (1.0 + ratio).sqrt()
