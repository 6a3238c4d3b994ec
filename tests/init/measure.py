"""Monte Carlo over initialisations, with the tolerance that follows from it."""

from __future__ import annotations

import torch


def over_inits(one, num):
    """``one()`` gives a list of numbers, for one initialisation; stacked they are ``[num, ...]``."""
    return torch.tensor([one() for _ in range(num)], dtype=torch.float64)


def assert_mean(values, wanted, largest_error=0.1):
    """The mean over initialisations is within four standard errors, and these are a small part of what is wanted."""
    error = values.std(0) / values.shape[0] ** 0.5
    wanted = torch.as_tensor(wanted, dtype=torch.float64).expand_as(error)
    assert bool((4 * error <= largest_error * wanted.abs() + 1e-12).all()), "too few draws for this test"
    assert bool(((values.mean(0) - wanted).abs() <= 4 * error + 1e-6 * wanted.abs()).all()), (values.mean(0), wanted)


def powers(tensors):
    """Mean square of each tensor."""
    return [tensor.square().mean().item() for tensor in tensors]
