from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models import BayesianModel, likelihoods, priors

LIKE = torch.zeros(())
WEIGHT = ParamRecord((6, 4), "weight", 0)
BIAS = ParamRecord((6,), "bias", 0)


def moments(prior: priors.Normal, name: str, record: ParamRecord):
    fn = prior.distribution(name, record, like=LIKE)
    assert fn.batch_shape == ()
    assert tuple(fn.event_shape) == record.shape
    return fn.mean, fn.stddev


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (WEIGHT, 0.5),
        (BIAS, 1.0),
        (ParamRecord((8, 4, 3, 3), "weight", 1), 1 / 6),
        (ParamRecord((4, 8, 3, 3), "weight", 1, extra={"transposed": True}), 1 / 6),
        (ParamRecord((), None), 1.0),
        (ParamRecord((10, 3), "embedding", 0), 1.0),
    ],
)
def test_fan_in(record, expected):
    mean, std = moments(priors.Normal(scale="fan_in"), "p", record)
    torch.testing.assert_close(std, torch.full(record.shape, expected))
    torch.testing.assert_close(mean, torch.zeros(record.shape))


def test_norm_scales_have_mean_one():
    mean, _ = moments(priors.Normal(scale=0.3), "bn.weight", ParamRecord((3,), "bn_scale", 2))
    torch.testing.assert_close(mean, torch.ones(3))
    mean, _ = moments(priors.Normal(scale=0.3, loc=0.0), "bn.weight", ParamRecord((3,), "bn_scale", 2))
    torch.testing.assert_close(mean, torch.zeros(3))


def test_per_parameter_exact_names_before_patterns():
    prior = priors.Normal(scale={"*": 2.0, "0.weight": "fan_in", "*.bias": torch.full((6,), 3.0)}, loc={"*.bias": 1.0})
    assert moments(prior, "0.weight", WEIGHT)[1].unique().item() == 0.5
    assert moments(prior, "2.weight", WEIGHT)[1].unique().item() == 2.0
    # patterns in their order: "*" comes first
    assert moments(prior, "0.bias", BIAS)[1].unique().item() == 2.0
    assert moments(prior, "0.bias", BIAS)[0].unique().item() == 1.0
    assert moments(prior, "0.weight", WEIGHT)[0].unique().item() == 0.0


def test_dtype_follows_the_network():
    fn = priors.Normal(scale="fan_in").distribution("w", WEIGHT, like=torch.zeros((), dtype=torch.float64))
    assert fn.sample().dtype == torch.float64


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, float("nan"), float("inf"), "fan_out", torch.tensor([1.0, -1.0]), {"a": -1}]
)
def test_bad_scales(scale):
    with pytest.raises(ArgumentError, match="scale"):
        priors.Normal(scale=scale)


def test_bad_types_and_missing_names():
    with pytest.raises(ArgumentTypeError, match="scale: is a list"):
        priors.Normal(scale=[1.0])
    with pytest.raises(ArgumentTypeError, match="loc: is a str"):
        priors.Normal(loc="zero")
    with pytest.raises(ArgumentError, match="no entry for the parameter '0.bias'"):
        priors.Normal(scale={"*.weight": 1.0}).distribution("0.bias", BIAS, like=LIKE)
    with pytest.raises(ArgumentError, match=r"'0.bias' has shape \(5,\)"):
        priors.Normal(scale={"*": torch.ones(5)}).distribution("0.bias", BIAS, like=LIKE)


# ---------------------------------------------------------------------- learned scales


def learned_model(*, flat=False, prior=None, dtype=torch.float64, learn=True):
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    prior = prior or priors.Normal(scale={"*.weight": "fan_in", "*.bias": 0.5}, loc={"2.weight": 0.3}, learn=learn)
    return BayesianModel(net, prior, likelihoods.Normal(scale=0.3), flat=flat)


def weights_of(m):
    names, shapes = m.net.param_names, m.net.param_shapes
    values = {name: torch.randn(7, *shape, dtype=torch.float64) for name, shape in zip(names, shapes, strict=True)}
    return values if not m.flat else {"weights": torch.cat([v.flatten(1) for v in values.values()], 1)}, values


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("learn", "shapes"),
    [
        (True, {"0.weight": (), "0.bias": (), "2.weight": (), "2.bias": ()}),
        ("inputs", {"0.weight": (1, 3), "0.bias": (), "2.weight": (1, 5), "2.bias": ()}),
        ({"0.weight": "inputs", "2.*": True}, {"0.weight": (1, 3), "2.weight": (), "2.bias": ()}),
    ],
)
def test_learned_scales_enter_the_density(flat, learn, shapes):
    """By hand, at factors other than 1 and again after they changed: nothing is kept from before."""
    torch.manual_seed(0)
    m = learned_model(flat=flat, learn=learn)
    sites, values = weights_of(m)
    start = {"0.weight": (0.0, 3**-0.5), "0.bias": (0.0, 0.5), "2.weight": (0.3, 5**-0.5), "2.bias": (0.0, 0.5)}
    assert {name: tuple(factor.shape) for name, factor in m.scale_factors.items()} == shapes
    assert all(bool((factor == 1.0).all()) for factor in m.scale_factors.values())
    for _ in range(2):
        with torch.no_grad():
            m.learned_scales.log_factor.normal_()
        factors = dict.fromkeys(start, torch.ones((), dtype=torch.float64)) | m.scale_factors
        parts: dict[str, torch.Tensor] = {
            name: dist.Normal(loc, scale * factors[name]).log_prob(values[name]).flatten(1).sum(1)
            for name, (loc, scale) in start.items()
        }
        priors_now = m.weight_priors()
        found = torch.stack([priors_now[name].expand((7,)).log_prob(v) for name, v in sites.items()]).sum(0)
        torch.testing.assert_close(found, torch.stack(list(parts.values())).sum(0))
        # d/dtheta log N(w; loc, (s e^theta)^2) = sum z^2 - 1
        grad = torch.autograd.grad(found.sum(), m.learned_scales.log_factor)[0]
        expected: list[torch.Tensor] = []
        for name, shape in shapes.items():
            z = (values[name] - start[name][0]) / (start[name][1] * factors[name])
            expected.append((z.square() - 1.0).sum_to_size(shape).reshape(-1))
        torch.testing.assert_close(grad, torch.cat(expected))
        for name, fn in priors_now.items():
            assert not fn.sample().requires_grad
            if not flat:
                torch.testing.assert_close(fn.stddev, (start[name][1] * factors[name]).expand(fn.event_shape))


def test_learned_scales_belong_to_the_model():
    prior = priors.Normal(scale="fan_in", learn=True)
    assert repr(prior) == "Normal(scale='fan_in', learn=True)"
    first, second = learned_model(prior=prior), learned_model(prior=prior)
    with torch.no_grad():
        first.learned_scales.log_factor.fill_(1.0)
    assert all(bool(factor == 1.0) for factor in second.scale_factors.values())
    assert [name for name, _ in first.named_parameters()] == ["learned_scales.log_factor"]
    plain = learned_model(prior=priors.Normal(scale="fan_in"))
    assert plain.scale_factors == {}
    assert not list(plain.parameters())


@pytest.mark.parametrize("flat", [False, True])
def test_learned_scales_are_announced_and_follow_the_dtype(flat):
    m = learned_model(flat=flat)
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    trace = poutine.trace(m).get_trace(x, y)
    site = trace.nodes["prior.log_factor"]
    assert site["type"] == "param"
    assert site["value"].unconstrained() is m.learned_scales.log_factor
    assert not list(pyro.get_param_store().keys())
    with torch.no_grad():
        m.learned_scales.log_factor.fill_(0.5)
    single = copy.deepcopy(m).float()
    for name, fn in single.weight_priors().items():
        assert fn.sample().dtype == torch.float32
        torch.testing.assert_close(fn.stddev, m.weight_priors()[name].stddev.float())
    again = pickle.loads(pickle.dumps(m))
    assert torch.equal(again.learned_scales.log_factor, m.learned_scales.log_factor)


def test_factors_of_a_transposed_convolution():
    """Its weight is [in, out, ...]."""
    record = ParamRecord((4, 8, 3, 3), "weight", 1, extra={"transposed": True})
    assert priors.Normal(learn="inputs").factor_shape("w", record) == (4, 1, 1, 1)
    plain = ParamRecord((8, 4, 3, 3), "weight", 1)
    assert priors.Normal(learn="inputs").factor_shape("w", plain) == (1, 4, 1, 1)
    assert priors.Normal(learn={"v": True}).factor_shape("w", plain) is None


def test_only_normal_priors_can_be_learned():
    class Laplace(priors.Prior):
        def factor_shape(self, name, record):
            return ()

        def distribution(self, name, record, *, like):
            return dist.Laplace(like, like + 1.0).expand(record.shape).to_event(len(record.shape))

    with pytest.raises(ArgumentTypeError, match=r"parameter '0.weight' is to be learned.* it has a[n]* Independent"):
        learned_model(prior=Laplace())

    class Wrong(priors.Normal):
        def factor_shape(self, name, record):
            return (2,)

    with pytest.raises(ArgumentError, match=r"factors of shape \(2,\) for parameter '0.weight'.* its \(5, 3\)"):
        learned_model(prior=Wrong())
    with pytest.raises(ArgumentError, match="learn: is 'all'; pass False, True or 'inputs'"):
        priors.Normal(learn="all")
    with pytest.raises(ArgumentError, match="learn: is 2"):
        priors.Normal(learn={"*": 2})


@pytest.mark.parametrize("argument", ["scale", "loc", "learn"])
def test_names_that_are_no_parameters_are_refused(argument):
    """Typing errors would otherwise be ignored; patterns, which serve several networks, may match nothing."""
    value = {"scale": 1.0, "loc": 0.5, "learn": True}[argument]

    def model(name):
        options = {"scale": 1.0, argument: {name: value, "*": value}}
        return BayesianModel(nn.Linear(2, 1), priors.Normal(**options), likelihoods.Normal(0.1))

    with pytest.raises(ArgumentError, match=rf"{argument}: has entries for \['wieght'\]; the network's parameters are"):
        model("wieght")
    assert model("*.nothing").prior is not None
