from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import NoisySampler
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.models import emit_param_sites
from tests.samplers import exact_shared_log_prob, perturbed


@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize(("sample", "batch"), [((), ()), ((5,), ()), ((), (3,)), ((5,), (3, 1)), ((2, 4), (3,))])
def test_shapes(noise, sample, batch):
    q = ImplicitWeights(perturbed(noise=noise)).expand(batch)
    value = q.rsample(sample)
    assert value.shape == sample + batch + (12,)
    assert q.log_prob(value).shape == sample + batch
    assert q.batch_shape == batch
    assert q.event_shape == (12,)
    assert not q.sample(sample).requires_grad


def test_expanded_rows_are_independent():
    value = ImplicitWeights(perturbed()).expand((4,)).rsample()
    assert value.unique(dim=0).shape[0] == 4


def test_loc_and_scale_are_a_change_of_variables():
    torch.set_default_dtype(torch.float64)
    hnet = perturbed()
    loc, scale = torch.randn(12), torch.rand(12) + 0.5
    plain, moved = ImplicitWeights(hnet), ImplicitWeights(hnet, loc=loc, scale=scale)
    torch.manual_seed(3)
    w = plain.rsample((6,))
    torch.manual_seed(3)
    v = moved.rsample((6,))
    torch.testing.assert_close(v, loc + scale * w)
    torch.testing.assert_close(moved.log_prob(v), plain.log_prob(w) - scale.log().sum())
    # foreign points go the same way
    torch.testing.assert_close(moved.log_prob(v.detach() + 1e-9), plain.log_prob(w).detach() - scale.log().sum())


def test_known_noise_and_search_agree():
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(sigma=0.8)
    q = ImplicitWeights(hnet)
    value = q.rsample((6,))
    exact = exact_shared_log_prob(hnet, q.last_made_of.noise)
    torch.testing.assert_close(q.log_prob(value), exact)
    torch.testing.assert_close(ImplicitWeights(hnet).log_prob(value.detach()), exact.detach(), atol=1e-6, rtol=0)


def test_conditions_have_their_own_distribution():
    hnet = HPerturbWrapper(HMLP([[6]], uncond_in_size=2, cond_in_size=3, num_cond_embs=2, verbose=False), verbose=False)
    for kwargs in ({"cond_id": 1}, {"cond_input": torch.randn(3)}):
        q = ImplicitWeights(hnet, **kwargs)
        value = q.rsample((4,))
        assert torch.isfinite(q.log_prob(value)).all()
    torch.manual_seed(0)
    first = ImplicitWeights(hnet, cond_id=0).rsample()
    torch.manual_seed(0)
    assert not torch.equal(first, ImplicitWeights(hnet, cond_id=1).rsample())


def test_same_seed_same_draw():
    q = ImplicitWeights(perturbed())
    torch.manual_seed(5)
    first = q.rsample((3,))
    torch.manual_seed(5)
    assert torch.equal(first, q.rsample((3,)))


def test_gradients_reach_every_parameter():
    hnet = perturbed(linear_skip=True)
    q = ImplicitWeights(hnet)
    value = q.rsample((3,))
    (q.log_prob(value).sum() + value.square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in hnet.parameters())


def test_in_a_hand_written_guide():
    hnet = perturbed(3, 2, linear_skip=True)
    data = torch.tensor([1.0, -1.0, 2.0])

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("obs", dist.Normal(w, 1.0).to_event(1), obs=data)

    def guide():
        emit_param_sites("hnet", hnet)
        pyro.sample("w", ImplicitWeights(hnet))

    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1 / 800)})
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=64, vectorize_particles=True))
    for _ in range(800):
        svi.step()
    draws = ImplicitWeights(hnet).sample((4000,))
    # Exact posterior N(data / 2, 1 / 2); Monte Carlo error of the mean is 0.011.
    torch.testing.assert_close(draws.mean(0), data / 2, atol=0.1, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.full((3,), 0.5**0.5), atol=0.1, rtol=0)
    assert len(list(pyro.get_param_store().keys())) == 0


def test_as_a_prior():
    q = ImplicitWeights(perturbed(3, 2, sigma=0.5))

    def model():
        w = pyro.sample("w", q)
        pyro.sample("obs", dist.Normal(w.sum(-1), 1.0), obs=torch.tensor(1.0))

    trace = pyro.poutine.trace(pyro.poutine.condition(model, {"w": torch.zeros(3)})).get_trace()
    assert torch.isfinite(trace.log_prob_sum())


def test_generic_hypernetwork_and_copies():
    q = ImplicitWeights(perturbed(kind="sine"))
    value = q.rsample((4,))
    assert torch.isfinite(q.log_prob(value)).all()
    for duplicate in (copy.deepcopy(q), pickle.loads(pickle.dumps(ImplicitWeights(perturbed())))):
        assert duplicate.rsample((2,)).shape == (2, 12)


def test_errors():
    hnet = HMLP([[4]], uncond_in_size=2, cond_in_size=0, verbose=False)
    with pytest.raises(ArgumentTypeError, match="wrap it: HPerturbWrapper"):
        ImplicitWeights(hnet)
    with pytest.raises(ArgumentError, match="handlers"):
        ImplicitWeights(
            HPerturbWrapper(hnet, input_handler=lambda **kw: (kw["uncond_input"], None, None), verbose=False)
        )
    wrapped = perturbed()
    with pytest.raises(ArgumentError, match="cond_id, cond_input: both"):
        ImplicitWeights(wrapped, cond_id=0, cond_input=torch.zeros(1))
    with pytest.raises(ArgumentError, match="has its condition already"):
        ImplicitWeights(NoisySampler(wrapped), cond_id=0)
    with pytest.raises(ArgumentError, match=r"loc: has shape \(3,\)"):
        ImplicitWeights(wrapped, loc=torch.zeros(3))
    with pytest.raises(ArgumentError, match="scale: has entries that are not positive"):
        ImplicitWeights(wrapped, scale=-1.0)
    with pytest.raises(ArgumentError, match="last dimension has to be 12"):
        ImplicitWeights(wrapped).log_prob(torch.zeros(3, 11))
    with pytest.raises(ArgumentError, match="sigma_noise is 0"):
        ImplicitWeights(HPerturbWrapper(hnet, sigma_noise=0.0, verbose=False))
    assert "noise_dim=4" in repr(ImplicitWeights(wrapped))
    assert isinstance(wrapped, nn.Module)


def small(**options):
    hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, layers=(4,), verbose=False)
    return ImplicitWeights(HPerturbWrapper(hnet, sigma_noise=0.5, verbose=False), **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(bad):
    """Before: -inf for NaN and NaN for infinity, without a word."""
    torch.manual_seed(0)
    w = torch.randn(5, 3)
    w[2, 1] = bad
    with pytest.raises(ArgumentError, match="value: 1 of 5 rows hold NaN or infinite numbers, row 2"):
        small(validate_args=True).log_prob(w)
    q = small(validate_args=False)
    rest = [0, 1, 3, 4]
    log_prob = q.log_prob(w)
    assert log_prob.isnan().tolist() == [False, False, True, False, False]
    assert bool(torch.isfinite(log_prob[rest]).all())


def test_values_of_another_kind():
    q = small()
    for bad in ([0.0, 0.0, 0.0], None, "w", torch.zeros(5, 3, dtype=torch.long), torch.zeros(5, 3, dtype=torch.cfloat)):
        with pytest.raises(ArgumentTypeError, match=r"value: is .*; pass a floating-point tensor \[..., 3\]"):
            q.log_prob(bad)
    assert q.log_prob(torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"loc": float("nan")}, ArgumentError, "loc: has entries that are NaN"),
        ({"scale": float("inf")}, ArgumentError, "scale: has entries that are NaN or infinite"),
        ({"loc": "a"}, ArgumentTypeError, "loc: is a str"),
        ({"scale": True}, ArgumentTypeError, "scale: is a bool"),
        ({"estimator": "exact"}, ArgumentTypeError, "estimator: is 'exact'; pass one of bayeshnet.entropy"),
    ],
)
def test_options(options, error, match):
    with pytest.raises(error, match=match):
        small(**options)
