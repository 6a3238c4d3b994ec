from __future__ import annotations

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch

from bayeshnet.models.weight_normal import WeightNormal


@pytest.mark.parametrize("shape", [(), (3,), (4, 2)])
@pytest.mark.parametrize("batch", [(), (5,), (5, 1)])
@pytest.mark.parametrize("centred", [True, False])
def test_equals_the_plain_normal(shape, batch, centred):
    torch.set_default_dtype(torch.float64)
    loc = torch.zeros(shape) if centred else torch.randn(shape)
    scale = torch.rand(shape) + 0.1
    plain = dist.Normal(loc, scale).to_event(len(shape)).expand(batch)
    fn = WeightNormal(loc, scale).expand(batch)
    assert fn.batch_shape == plain.batch_shape
    assert fn.event_shape == plain.event_shape
    assert repr(fn.support) == repr(plain.support)
    for value in (fn.sample(), fn.sample((6,)), torch.randn(shape)):
        torch.testing.assert_close(fn.log_prob(value), plain.log_prob(value))
    torch.testing.assert_close(fn.expand((2, *batch)).log_prob(torch.randn(shape)).shape, torch.Size((2, *batch)))
    for duplicate in (copy.deepcopy(fn), pickle.loads(pickle.dumps(fn))):
        value = fn.sample()
        torch.testing.assert_close(duplicate.log_prob(value), plain.log_prob(value))
    torch.manual_seed(0)
    first = fn.rsample()
    torch.manual_seed(0)
    torch.testing.assert_close(first, plain.rsample())
