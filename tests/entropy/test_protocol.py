"""What the protocol of estimators promises to those who write one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import ChangeOfVariables, Draw, LogDensity, NoisySampler
from bayeshnet.errors import DensityError
from tests.samplers import perturbed


class Counting(ChangeOfVariables):
    """An estimator with a state that it makes when it is checked."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = 0

    def check(self, sampler: NoisySampler) -> None:
        super().check(sampler)
        self.checks += 1

    def log_prob(self, sampler: NoisySampler, draw: Draw) -> Tensor:
        assert self.checks
        return super().log_prob(sampler, draw)


def test_each_estimator_is_checked_before_it_is_asked_once_in_a_row() -> None:
    sampler = NoisySampler(perturbed())
    first, second = Counting(), Counting()
    for estimator in (first, first, second, second, first):
        q = ImplicitWeights(sampler, estimator=estimator)
        q.log_prob(q.rsample((3,)))
        q.log_prob(q.rsample((3,)))
    assert (first.checks, second.checks) == (2, 1)
    assert isinstance(sampler.checked_by, LogDensity)


def test_a_check_that_fails_fails_again() -> None:
    q = ImplicitWeights(perturbed(use_batch_norm=True))
    w = q.rsample((3,))
    for _ in range(2):
        with pytest.raises(DensityError, match="hnet: has batch norm"):
            q.log_prob(w)
    assert torch.isfinite(w).all()
