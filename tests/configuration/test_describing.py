from __future__ import annotations

import copy
import functools
import json
import pickle
import re

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayeshnet import HMLP, MLP, BayesianModel, HPerturbWrapper, entropy, families, likelihoods, priors
from bayeshnet.configuration import Configured, NotRebuiltError, described, differences, packed, rebuilt, unpacked
from bayeshnet.errors import CheckpointError

GAMMA = dist.Gamma(torch.tensor([6.0, 2.0]), 3.0).to_event(1)


def through_json(description):
    tensors = {}
    text = json.dumps(packed(description, tensors, "c/"), allow_nan=False)
    return unpacked(json.loads(text), tensors, "c/")


# ---------------------------------------------------------------------- there and back

PLAIN = [
    None,
    True,
    3,
    -2.5,
    float("inf"),
    "text",
    [1, [2.0, None]],
    (1, ("a",)),
    {"a": (1, 2), "kind": "tensor", "value": "c/0"},
    {1: 2.0, (3, 4): [5]},
    {3, 1, 2},
    torch.float64,
    torch.tensor([[1.0, 2.0]]),
    torch.tensor(3),
]


@pytest.mark.parametrize("value", PLAIN, ids=str)
def test_plain_data_come_back(value):
    description = through_json(described(value))
    found = rebuilt(description)
    assert type(found) is type(value)
    assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    assert not differences(description, described(value), "it")


DISTRIBUTIONS = [
    dist.Normal(0.0, 2.0),
    dist.Normal(torch.zeros(3), torch.ones(3).double()).to_event(1),
    GAMMA,
    dist.Gamma(6.0, 6.0).expand([3]).to_event(1),
    dist.HalfCauchy(2.0),
    dist.HalfNormal(torch.ones(2)).expand([3, 2]).to_event(2),
    dist.LogNormal(1.0, 0.5),
    dist.InverseGamma(3.0, 2.0),
    dist.StudentT(3.0, 0.0, 1.0),
    dist.Laplace(0.0, 1.0),
    dist.Uniform(0.5, 2.0),
    dist.Weibull(2.0, 3.0),
    dist.Beta(2.0, 3.0),
    dist.Dirichlet(torch.tensor([2.0, 3.0])),
    dist.Bernoulli(probs=torch.tensor(0.3)),
    dist.Categorical(logits=torch.tensor([0.1, 2.0])),
    dist.MultivariateNormal(torch.zeros(2), covariance_matrix=torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
    dist.MixtureSameFamily(
        dist.Categorical(probs=torch.tensor([0.25, 0.75])), dist.Normal(torch.zeros(2), torch.tensor([0.1, 1.0]))
    ),
    dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()]),
    dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(1.0, 2.0)]),
    dist.Gamma(2.0, 1.0).mask(torch.tensor(True)),
]


@pytest.mark.parametrize("fn", DISTRIBUTIONS, ids=lambda fn: type(getattr(fn, "base_dist", fn)).__name__)
def test_distributions_of_pyro_come_back_to_the_bit(fn):
    made = rebuilt(through_json(described(fn)))
    assert type(made) is type(fn)
    assert made.batch_shape == fn.batch_shape
    assert made.event_shape == fn.event_shape
    torch.manual_seed(0)
    draws = fn.sample((5,))
    torch.manual_seed(0)
    assert torch.equal(made.sample((5,)), draws)
    assert torch.equal(made.log_prob(draws), fn.log_prob(draws))
    assert not differences(through_json(described(fn)), described(made), "it")


def test_which_of_two_parameters_was_given_does_not_depend_on_what_was_asked_for():
    fn = dist.Bernoulli(probs=torch.tensor(0.3))
    _ = fn.logits
    assert list(described(fn)["arguments"]) == ["probs"]
    fn = dist.Bernoulli(logits=torch.tensor(0.3))
    _ = fn.probs
    assert list(described(fn)["arguments"]) == ["logits"]


class WithoutConstructor(families.Family):
    def distribution(self, loc=None, scale=None):
        raise NotImplementedError


CONFIGURED = [
    priors.Normal(scale="fan_in", learn="inputs"),
    priors.Normal(scale={"*.weight": "fan_in", "b": torch.ones(3), "*": 0.5}, loc={"*.bias": 1.0}),
    likelihoods.Normal(scale=0.1, learn=True),
    likelihoods.Normal(scale=torch.tensor([0.1, 0.2])),
    likelihoods.Normal(precision=GAMMA),
    likelihoods.Categorical(class_dim=1),
    families.MeanField(),
    families.LowRank(rank=3),
    families.BlockGaussian(num_components=2),
    families.Mixture(families.Mixture(families.LowRank(2), 3), 2),
    families.Mixture("block_gaussian"),
    families.Hypernet(
        noise_dim=3, hidden_layers=[4], noise="shared", estimator=entropy.ChangeOfVariables(num_starts=2)
    ),
    entropy.Linearised(form="entropy"),
    entropy.ImportanceSampled(num_inner=3),
]


@pytest.mark.parametrize("value", CONFIGURED, ids=repr)
def test_objects_of_this_package_come_back(value):
    description = through_json(described(value))
    made = rebuilt(description)
    assert type(made) is type(value)
    assert repr(made) == repr(value)
    assert not differences(description, described(made), "it")


def test_what_is_remembered_survives_copies_and_pickles():
    for value in (*CONFIGURED, MLP(2, 1, (3,), activation_fn=nn.Tanh(), verbose=False)):
        for other in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert not differences(described(value), described(other), "it")


def test_what_is_changed_later_is_described_as_it_is():
    family = families.LowRank(rank=3)
    family.rank = 4
    (found,) = differences(described(families.LowRank(rank=3)), described(family), "family")
    assert str(found) == "family.rank is 3 in the file and 4 here"
    given = torch.ones(3)
    prior = priors.Normal(scale={"w": given})
    given[0] = 7.0  # what was given belongs to the user
    assert not differences(described(priors.Normal(scale={"w": torch.ones(3)})), described(prior), "prior")


# ---------------------------------------------------------------------- nothing else


@pytest.mark.parametrize(
    "description",
    [
        {"kind": "function", "name": "os.system"},
        {"kind": "class", "name": "subprocess.Popen"},
        {"kind": "object", "class": "os.system", "arguments": {"command": "true"}},
        {"kind": "partial", "function": {"kind": "function", "name": "os.system"}, "arguments": ["true"]},
        {"kind": "module", "modules": {"": {"class": "torch.nn.modules.linear.Linear", "attributes": {}}}},
        {"kind": "configured", "of": "prior", "class": "os.system", "arguments": {}},
        {"kind": "configured", "of": "prior", "class": "Prior", "arguments": {}},
        {"kind": "configured", "of": "prior", "class": "Normal", "own": "mine.Normal", "arguments": {}},
        {"kind": "configured", "of": "prior", "class": "Normal", "arguments": {"scale": -1.0}},
        {"kind": "configured", "of": "prior", "class": "Normal", "arguments": {"other": 1.0}},
        {"kind": "configured", "of": [], "class": {}, "arguments": {}},
        {"kind": "configured"},
        {"kind": "distribution", "class": "__builtins__", "arguments": {}},
        {"kind": "distribution", "class": ["Normal"], "arguments": {}},
        {"kind": "distribution", "class": "Normal", "arguments": {"loc": "a", "scale": {}}},
        {"kind": "distribution", "class": "LKJCholesky", "arguments": {"dim": 10**9}},
        {"kind": "transform", "class": "os", "arguments": {}},
        {"kind": "dtype", "name": "load"},
        {"kind": "tensor", "value": "configuration/3"},
        {"kind": "float", "value": "3"},
        {"kind": "tuple"},
        {"kind": "tuple", "items": 3},
        {"kind": "mapping", "items": [3]},
        {"kind": "pairs", "items": [[{"kind": "mapping", "items": {}}, 3]]},
        {"kind": "unknown"},
        {"kind": 3},
        {},
    ],
)
def test_nothing_but_known_classes_is_made(description):
    with pytest.raises(NotRebuiltError):
        rebuilt(description)


def test_a_tensor_that_is_missing():
    with pytest.raises(CheckpointError, match="refers to a tensor 'c/3' that is not in the file"):
        unpacked([{"kind": "tensor", "value": "c/3"}], {}, "c/")


# ---------------------------------------------------------------------- what differs


def slope(by=1.0, power=2):
    return lambda x: by * x**power


def make(scale):
    def prior(name, record, *, like):
        return dist.Normal(like.new_zeros(record.shape), scale).to_event(len(record.shape))

    return prior


LIMIT = 3.0


def limited(x, limit=2.0):
    return x.clamp(max=min(limit, LIMIT))


class Net(nn.Module):
    def __init__(self, act=torch.tanh, slope=1.0, extra=None):
        super().__init__()
        self.first, self.act, self._slope = nn.Linear(2, 3), act, slope
        self.extra = extra
        self.register_buffer("hidden", torch.full((2,), slope), persistent=False)

    def forward(self, x):
        return self.act(self._slope * self.first(x))


class OwnLikelihood(likelihoods.Likelihood):
    def __init__(self, scale=1.0):
        super().__init__()
        self.width = 2.0 * scale

    def conditional(self, f, params, *, batch_dims):
        return dist.Laplace(f, self.width).to_event(f.dim() - batch_dims)


class Settings:
    def __init__(self, act):
        self.act, self.me = act, self


def hmlp(act, **options):
    return HMLP([[3, 2]], uncond_in_size=2, cond_in_size=0, layers=(4,), activation_fn=act, verbose=False, **options)


def frozen():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    return net


def hooked():
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda module, args, out: 2.0 * out)
    return net


DIFFERENT = {
    "numbers": (1.0, 3.0, "it is 1.0 in the file and 3.0 here"),
    "kinds": (1.0, "a", "it is 1.0 in the file and 'a' here"),
    "lengths": ([1], [1, 2], r"it is \[1\] in the file and \[1, 2\] here"),
    "tensors": (torch.ones(2), torch.zeros(2), r"it is \[1.0, 1.0\] in the file and \[0.0, 0.0\] here"),
    "dtypes": (torch.ones(2), torch.ones(2).double(), "it is"),
    "patterns": ({"a": 1, "*": 2}, {"*": 2, "a": 1}, "the order of it"),
    "distributions": (dist.Gamma(6.0, 6.0), dist.Gamma(6.0, 3.0), "it.rate is 6.0 in the file and 3.0 here"),
    "families_of_them": (dist.Gamma(6.0, 6.0), dist.HalfNormal(1.0), r"it is Gamma\(concentration=6.0, rate=6.0\)"),
    "activations": (
        nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        "it.1 is Tanh in the file and ReLU here",
    ),
    "slopes": (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), "it.negative_slope is 0.1 in the file and 0.2 here"),
    "approximations": (nn.GELU(), nn.GELU("tanh"), "it.approximate is 'none' in the file and 'tanh' here"),
    "strides": (nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, padding=1), "it.padding"),
    "missing_parts": (nn.Sequential(nn.Tanh()), nn.Sequential(), "it.0 is Tanh in the file and not there here"),
    "added_parts": (nn.Sequential(), nn.Sequential(nn.Tanh()), "it.0 is not there in the file and Tanh here"),
    "frozen": (nn.Linear(2, 2), frozen(), r"it.frozen is \[\] in the file and \['bias'\] here"),
    "hooks": (nn.Linear(2, 2), hooked(), "it.hooks"),
    "functions": (Net(torch.tanh), Net(F.relu), r"it.act is tanh in the file and relu here"),
    "attributes": (Net(slope=1.0), Net(slope=2.0), "it._slope is 1.0 in the file and 2.0 here"),
    "settings": (Net(extra=Settings("tanh")), Net(extra=Settings("relu")), "it.extra.act is 'tanh' in the file"),
    "parts_in_lists": (Net(extra=[nn.Tanh()]), Net(extra=[nn.ReLU()]), r"it.extra\[0\] is Tanh in the file and ReLU"),
    "plain_tensors": (Net(extra=torch.ones(2)), Net(extra=torch.zeros(2)), "it.extra.*SHA"),
    "networks": (
        MLP(2, 1, (3,), activation_fn=nn.Tanh(), verbose=False),
        MLP(2, 1, (3,), activation_fn=nn.ReLU(), verbose=False),
        "it.activation_fn is Tanh in the file and ReLU here",
    ),
    "generators": (
        HPerturbWrapper(hmlp(nn.Tanh()), verbose=False),
        HPerturbWrapper(hmlp(nn.ELU()), verbose=False),
        "it.hnet.activation_fn is Tanh in the file and ELU here",
    ),
    "noise": (
        HPerturbWrapper(hmlp(None), sigma_noise=0.1, verbose=False),
        HPerturbWrapper(hmlp(None), sigma_noise=0.2, verbose=False),
        "it.sigma_noise is 0.1 in the file and 0.2 here",
    ),
    "closures": (make(1.0), make(3.0), "it.scale is 1.0 in the file and 3.0 here"),
    "lambdas": (slope(1.0), slope(2.0), "it.by is 1.0 in the file and 2.0 here"),
    "partials": (functools.partial(limited, limit=1.0), functools.partial(limited, limit=2.0), "it.keywords.limit"),
    "own_likelihoods": (OwnLikelihood(1.0), OwnLikelihood(2.0), "it.scale is 1.0 in the file and 2.0 here"),
    "learned": (likelihoods.Normal(scale=1.0), likelihoods.Normal(scale=1.0, learn=True), "it.learn is False"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_differences_are_named(case):
    one, other, text = DIFFERENT[case]
    saved = through_json(described(one))
    assert not differences(saved, described(one), "it")
    found = differences(saved, described(other), "it")
    assert found
    assert all(difference.certain for difference in found)
    assert any(re.search(text, str(difference)) for difference in found), [str(d) for d in found]


SAME = {
    "kinds_of_numbers": (1, 1.0),
    "lists_and_tuples": ([4, (2,)], (4, [2])),
    "starts_of_what_is_learned": (likelihoods.Normal(scale=1.0, learn=True), likelihoods.Normal(scale=2.0, learn=True)),
    "where_weights_are": (MLP(2, 1, (3,), verbose=False), MLP(2, 1, (3,), no_weights=True, verbose=False)),
    "shared_parts": (
        nn.Sequential(act := nn.Tanh(), nn.Linear(2, 2), act),
        nn.Sequential(nn.Tanh(), nn.Linear(2, 2), nn.Tanh()),
    ),
    "weights": (nn.Linear(2, 2), nn.Linear(2, 2)),
    "modes": (nn.Dropout(0.1).eval(), nn.Dropout(0.1)),
    "sizes_of_data": (
        BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1), dataset_size=30),
        BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1)),
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_what_makes_no_difference(case):
    one, other = SAME[case]
    assert not differences(through_json(described(one)), described(other), "it")


def function_of(text):
    found = {"__name__": "mine"}
    exec(text, found)
    return found["f"]


def test_the_code_of_a_function_may_differ_without_effect():
    one, other = function_of("def f(x):\n    return x + 1"), function_of("def f(x):\n    return x - 1")
    same = function_of("def f(x):\n    'It adds.'\n    # It does.\n    return x + 1")
    saved = through_json(described(one))
    (found,) = differences(saved, described(other), "prior")
    assert not found.certain
    assert str(found).startswith("the code of prior is ")
    assert not differences(saved, described(same), "prior")
    assert not differences({**saved, "python": "CPython 2.7"}, described(other), "prior")
    one, other = (function_of(f"SCALE = {n}\ndef f(x):\n    return SCALE * x") for n in (1.0, 3.0))
    (found,) = differences(described(one), described(other), "prior")
    assert str(found) == "prior.SCALE is 1.0 in the file and 3.0 here"


def test_the_code_of_a_network():
    nets = [
        type("Net", (nn.Module,), {"forward": function_of(f"import torch\ndef f(self, x):\n    return torch.{act}(x)")})
        for act in ("tanh", "relu", "tanh")
    ]
    one, other, same = (described(net()) for net in nets)
    (found,) = differences(one, other, "net")
    assert not found.certain
    assert str(found).startswith("the code of net is ")
    assert not differences(one, same, "net")


def test_arguments_that_a_file_does_not_know_count_by_their_default():
    saved = described(likelihoods.Normal(scale=0.1))
    del saved["arguments"]["learn"]
    assert not differences(saved, described(likelihoods.Normal(scale=0.1)), "likelihood")
    assert differences(saved, described(likelihoods.Normal(scale=0.1, learn=True)), "likelihood")


def test_a_module_without_a_constructor_has_no_arguments():
    assert described(WithoutConstructor())["arguments"] == {}


def test_what_refers_to_itself_ends():
    loop: list = []
    loop.append(loop)
    net = Net(extra=loop)
    net.__dict__["parent"] = net
    json.dumps(packed(described(net), {}, "c/"))


def test_a_class_outside_of_the_package_needs_nothing():
    class Slope(Configured):
        def __init__(self, by, *more, steps=3, **rest):
            self.steps = steps

    found = Slope(2.0, 1, other=torch.ones(1)).configuration()
    assert [*found] == ["by", "more", "steps", "other"]
    with pytest.raises(NotRebuiltError, match="a class of your own"):
        rebuilt(described(Slope(1.0)))
