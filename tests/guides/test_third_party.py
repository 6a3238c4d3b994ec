"""Networks written for the reference's interfaces as models and as generators of a guide."""

from __future__ import annotations

import copy
import pickle

import pyro
import pytest
import torch
from torch import nn

import bayeshnet
from bayeshnet import likelihoods
from bayeshnet.distributions import ImplicitWeights
from bayeshnet.errors import ArgumentError
from bayeshnet.hnets import HContainer, HPerturbWrapper
from tests.mnets.third_party import networks

NETS = networks("bayeshnet")
X = torch.linspace(-1, 1, 24).reshape(8, 3)
INPUTS = {"LeNet": torch.linspace(-1, 1, 4 * 64).reshape(4, 64), "SimpleRNN": X.reshape(4, 3, 2)}


@pytest.fixture(autouse=True)
def fresh_store():
    pyro.clear_param_store()
    torch.manual_seed(0)


def plain_tensors(shapes):
    return HContainer(shapes, lambda h, u, c: u, uncond_param_shapes=shapes, verbose=False)


GENERATORS = {
    "third party": lambda shapes: NETS["OwnHnet"](shapes, num_conds=0, n_cond=0),
    "third party, wrapped": lambda shapes: HPerturbWrapper(
        NETS["OwnHnet"](shapes, num_conds=0, n_cond=0), noise="independent", learn_sigma="per_weight"
    ),
    "third party in a container": lambda shapes: HContainer(
        shapes, lambda h, u, c: h[0], [NETS["OwnHnet"](shapes, num_conds=0, n_cond=0)], verbose=False
    ),
    # Before: "this HContainer needs a condition", because num_known_conds was 1.
    "plain tensors": plain_tensors,
    "plain tensors, wrapped": lambda shapes: HPerturbWrapper(plain_tensors(shapes), 0),
}


@pytest.mark.parametrize("build", GENERATORS.values(), ids=GENERATORS)
def test_generators(build):
    model = bayeshnet.BayesianModel(nn.Linear(3, 1), likelihood=likelihoods.Normal(scale=0.3))
    data = (X, X.sum(1))
    guide = bayeshnet.AutoHypernet(model, example=data, hnet=build)
    bayeshnet.fit(model, guide, data, steps=5, progress=False)
    assert bayeshnet.predict(model, guide, X, num_samples=20).mean.isfinite().all()


def test_a_generator_that_does_not_tell_its_input_size():
    """The message asked to pass ``hnet_uncond_in_size``, which a guide does not take; the fix named has to work."""

    def silent(shapes):
        hnet = NETS["OwnHnet"](shapes, num_conds=0, n_uncond=4, n_cond=0)
        del hnet.uncond_in_size
        return hnet

    model = bayeshnet.BayesianModel(nn.Linear(3, 1), likelihood=likelihoods.Normal(scale=0.3))
    data = (X, X.sum(1))
    fix = r"attribute, or pass the size to the wrapper: HPerturbWrapper\(OwnHnet\(...\), hnet_uncond_in_size=4\)"
    with pytest.raises(ArgumentError, match=fix):
        bayeshnet.AutoHypernet(model, example=data, hnet=silent)
    for hnet in (
        lambda shapes: HPerturbWrapper(silent(shapes), hnet_uncond_in_size=4),
        lambda shapes: NETS["OwnHnet"](shapes, num_conds=0, n_uncond=4, n_cond=0),
    ):
        guide = bayeshnet.AutoHypernet(model, example=data, hnet=hnet)
        assert guide.hnet.hnet_uncond_in_size == 4
        assert bayeshnet.predict(model, guide, X, num_samples=3).mean.isfinite().all()


def test_a_container_of_plain_tensors_is_a_gaussian():
    """Without anything that it could share, the wrapper's noise makes an exact Gaussian around the tensors."""
    hnet = HPerturbWrapper(plain_tensors([[3], [2]]), 0, sigma_noise=0.5)
    mean = hnet.internal_hnet(ret_format="flattened")[0]
    posterior = ImplicitWeights(hnet)
    value = posterior.rsample((4,))
    expected = torch.distributions.Normal(mean, 0.5).log_prob(value).sum(-1)
    torch.testing.assert_close(posterior.log_prob(value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["AutoHypernetDelta", "AutoHypernetNormal"])
def test_conditional_generators(kind):
    """Guides that take a condition: a third-party network whose embedding of condition 1 is the input."""
    model = bayeshnet.BayesianModel(nn.Linear(3, 1), likelihood=likelihoods.Normal(scale=0.3))
    data = (X, X.sum(1))
    guide = getattr(bayeshnet, kind)(
        model, example=data, hnet=lambda shapes: NETS["OwnHnet"](shapes, n_uncond=0, num_conds=2), cond_id=1
    )
    embedding = guide.hnet.conditional_params[1]
    before = embedding.detach().clone()
    bayeshnet.fit(model, guide, data, steps=5, progress=False)
    assert not torch.equal(embedding, before)
    assert bayeshnet.predict(model, guide, X, num_samples=20).mean.isfinite().all()


MODELS = {
    "LeNet": {},
    "SimpleRNN": {},
    "IntervalMLP": {},
    "MaskedMLP": {"n_in": 3},
    "ResidualNet": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    net = NETS[name](**MODELS[name]).eval()
    x = INPUTS.get(name, X)
    before = net(x)
    model = bayeshnet.BayesianModel(net, likelihood=likelihoods.Normal(scale=0.3))
    data = x, torch.randn_like(before)
    guide = bayeshnet.AutoHypernet(model, example=data)
    bayeshnet.fit(model, guide, data, steps=2, progress=False)
    pred = bayeshnet.predict(model, guide, x, num_samples=5)
    assert pred.mean.shape == before.shape
    assert torch.equal(net(x), before)  # the network given keeps its weights
    # Copies of a network, pickled or not, are the same function of the weights.
    weights = [torch.randn(shape) for shape in net.param_shapes]
    for twin in (copy.deepcopy(net), bayeshnet.mnets.functional_copy(net)):
        torch.testing.assert_close(twin(x, weights=weights), net(x, weights=weights))


def test_a_wrapped_generator_is_pickled():
    hnet = HPerturbWrapper(HContainer([[3]], sum_of, uncond_param_shapes=[[3]], verbose=False), 0)
    z = torch.randn(2, 3)
    twin = pickle.loads(pickle.dumps(hnet))
    assert torch.equal(twin(z, ret_format="flattened"), hnet(z, ret_format="flattened"))


def sum_of(h, u, c):
    return u
