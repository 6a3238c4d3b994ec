from __future__ import annotations

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import MLP
from bayeshnet.errors import ArgumentError, ArgumentTypeError, TargetShapeWarning
from bayeshnet.models import BayesianModel, likelihoods, priors

GAMMA = likelihoods.Normal(scale=dist.Gamma(6.0, 6.0))


def net(out: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, out))


def model(out: int = 1, **options) -> BayesianModel:
    return BayesianModel(net(out), prior=priors.Normal(scale="fan_in"), **{"likelihood": GAMMA, **options})


def joint(m: BayesianModel, values, x, y) -> torch.Tensor:
    return poutine.trace(poutine.condition(m, values)).get_trace(x, y).log_prob_sum()


def test_joint_density_by_hand():
    torch.set_default_dtype(torch.float64)
    m = model(likelihood=likelihoods.Normal(scale=0.3))
    x, y = torch.randn(9, 3), torch.randn(9)
    values = {name: torch.randn(shape) for name, shape in m.latent_shapes.items()}
    f = torch.tanh(x @ values["0.weight"].T + values["0.bias"]) @ values["2.weight"].T + values["2.bias"]
    expected = dist.Normal(f.squeeze(1), 0.3).log_prob(y).sum()
    for name, scale in (("0.weight", 3**-0.5), ("0.bias", 1.0), ("2.weight", 5**-0.5), ("2.bias", 1.0)):
        expected = expected + dist.Normal(0.0, scale).log_prob(values[name]).sum()
    torch.testing.assert_close(joint(m, values, x, y), expected)
    # flat: the same density for the same weights
    flat = BayesianModel(
        net(), prior=priors.Normal(scale="fan_in"), likelihood=likelihoods.Normal(scale=0.3), flat=True
    )
    vector = torch.cat([v.reshape(-1) for v in values.values()])
    torch.testing.assert_close(joint(flat, {"weights": vector}, x, y), expected)
    # one column of targets instead of a vector
    column = model(likelihood=likelihoods.Normal(scale=0.3), target_shape=(1,))
    torch.testing.assert_close(joint(column, values, x, y.unsqueeze(1)), expected)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("likelihood", [GAMMA, likelihoods.Categorical()], ids=["normal", "categorical"])
def test_vectorised_particles_equal_a_loop(flat, likelihood):
    torch.set_default_dtype(torch.float64)
    m = BayesianModel(net(2), likelihood=likelihood, flat=flat)
    x = torch.randn(6, 3)
    y = torch.randn(6, 2) if likelihood is GAMMA else torch.randint(2, (6,))
    values = {k: torch.rand(4, *shape) + 0.1 for k, shape in m.latent_shapes.items()}
    singles = torch.stack([joint(m, {k: v[s] for k, v in values.items()}, x, y) for s in range(4)])
    spread = {k: v.reshape(4, 1, *v.shape[1:]) for k, v in values.items()}
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(poutine.condition(m, spread)).get_trace(x, y)
    trace.compute_log_prob()
    parts = [trace.nodes[name]["log_prob"].reshape(4, -1).sum(1) for name in [*values, "obs"]]
    torch.testing.assert_close(sum(parts), singles)
    assert trace.nodes["obs"]["log_prob"].shape == (4, 6)


@pytest.mark.parametrize("num", [1, 7])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_predictive_from_posterior_samples(num, parallel, flat):
    m = model(flat=flat)
    x = torch.randn(6, 3)
    samples = {k: torch.rand(num, *shape) + 0.1 for k, shape in m.latent_shapes.items()}
    out = Predictive(m, posterior_samples=samples, parallel=parallel)(x)
    assert out["obs"].shape == (num, 6)
    prior = Predictive(m, num_samples=num, parallel=parallel)(x)
    assert prior["obs"].shape == (num, 6)


@pytest.mark.parametrize(("target_shape", "tail"), [(None, ()), ((), ()), ((1,), (1,)), ([1], (1,))])
def test_the_shape_of_observations_depends_on_no_call(target_shape, tail):
    """Before: on the last targets that the model had seen, so that a copy from a file predicted another shape."""
    x = torch.randn(6, 3)
    m = model(target_shape=target_shape)
    draws = {k: torch.rand(4, *shape) + 0.1 for k, shape in m.latent_shapes.items()}
    for y in (None, torch.randn(6, *tail), None):
        assert m(x, y).shape == (6, *tail)
        f, conditional = m.conditional(x, draws)
        assert f.shape == conditional.sample().shape == (4, 6, *tail)
    assert conditional.batch_shape == (4, 6)
    assert conditional.event_shape == tail
    other = pickle.loads(pickle.dumps(m))
    torch.testing.assert_close(other.conditional(x, draws)[0], f)
    assert (f"target_shape={tail}" in repr(m)) == (target_shape is not None)


def test_targets_of_another_shape_than_observations():
    x = torch.randn(6, 3)
    with pytest.warns(TargetShapeWarning, match=r"y: has shape \(6, 1\).* Pass BayesianModel.*\(1,\).*squeeze"):
        assert model()(x, torch.randn(6, 1)).shape == (6,)
    with pytest.raises(ArgumentError, match=r"asks for \(6, 1\)\. Pass y.unsqueeze\(-1\), or leave out target_shape"):
        model(target_shape=(1,))(x, torch.randn(6))
    with pytest.raises(ArgumentError, match=r"target_shape: is \(2,\), but the likelihood Normal .* shape \(1,\)"):
        model(target_shape=(2,))(x)
    for bad in (1, "1", (0,), (1.0,)):
        with pytest.raises(ArgumentTypeError, match="target_shape: is .*pass the shape of one observation"):
            model(target_shape=bad)
    with pytest.raises(ArgumentError, match="missing: is None; pass 'ignore'"):
        model(missing=None)


def test_minibatches_scale_the_likelihood():
    torch.set_default_dtype(torch.float64)
    x, y = torch.randn(12, 3), torch.randn(12)
    whole = model(dataset_size=12)
    values = {name: torch.rand(shape) + 0.1 for name, shape in whole.latent_shapes.items()}
    full = joint(whole, values, x, y)
    halves = [joint(whole, values, x[i : i + 6], y[i : i + 6]) for i in (0, 6)]
    torch.testing.assert_close(sum(halves) / 2, full)
    with pytest.raises(ArgumentError, match="dataset_size: is 12, but a batch of 13"):
        whole(torch.randn(13, 3), torch.randn(13))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3)),
        nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(64, 4), nn.LayerNorm(4), nn.Dropout(0.2), nn.Linear(4, 3)),
        MLP(n_in=64, n_out=3, hidden_layers=(4,), verbose=False),
        MLP(n_in=64, n_out=3, hidden_layers=(4,), no_weights=True, verbose=False),
    ],
    ids=["conv", "batchnorm", "layernorm", "mlp", "mlp without weights"],
)
def test_any_network(network):
    m = BayesianModel(network, likelihood=likelihoods.Categorical()).eval()
    shape = (5, 1, 8, 8) if isinstance(network, nn.Sequential) and isinstance(network[0], nn.Conv2d) else (5, 64)
    x, y = torch.randn(shape), torch.randint(3, (5,))
    guide = AutoNormal(m)
    if m.batch_norm.wants_rows:
        m.set_reference_rows(x)
    loss = pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1).loss(m, guide, x, y)
    assert torch.isfinite(torch.tensor(loss))
    assert not list(m.parameters())  # all weights are sites


def test_inputs_may_be_a_tuple():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(2, 3, 1)

        def forward(self, a, b):
            return self.bilinear(a, b)

    m = BayesianModel(Two(), likelihood=likelihoods.Normal(scale=0.1))
    inputs = (torch.randn(4, 2), torch.randn(4, 3))
    assert Predictive(m, num_samples=5, parallel=True)(inputs)["obs"].shape == (5, 4)


def test_a_function_as_prior_and_copies():
    def laplace(name, record, *, like):
        return dist.Laplace(like, like + 0.5).expand(record.shape).to_event(len(record.shape))

    m = BayesianModel(net(), prior=laplace, likelihood=GAMMA)
    assert isinstance(m.weight_priors()["0.weight"].base_dist, dist.Laplace)
    flat = BayesianModel(net(), prior=laplace, likelihood=GAMMA, flat=True).weight_priors()["weights"]
    w = torch.randn(5, *flat.event_shape)
    torch.testing.assert_close(flat.log_prob(w), dist.Laplace(0.0, 0.5).log_prob(w).sum(-1))

    def positive(name, record, *, like):
        return dist.LogNormal(like, like + 1.0).expand(record.shape).to_event(len(record.shape))

    with pytest.raises(ArgumentError, match="flat: one site for all weights needs priors over all real numbers"):
        BayesianModel(net(), prior=positive, likelihood=GAMMA, flat=True)
    assert copy.deepcopy(m)(torch.randn(2, 3)).shape == (2,)
    assert pickle.loads(pickle.dumps(model()))(torch.randn(2, 3)).shape == (2,)


def test_the_network_given_is_left_alone():
    network = net()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    m = BayesianModel(network, likelihood=GAMMA)
    m(torch.randn(4, 3), torch.randn(4))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_dtype_follows_to():
    m = model().double()
    assert m(torch.randn(4, 3).double()).dtype == torch.float64


@pytest.mark.parametrize(
    "prior",
    [
        dist.Gamma(torch.tensor(6.0).double(), 6.0),
        dist.LogNormal(torch.zeros(1).double(), 1.0).to_event(1),
        dist.TransformedDistribution(dist.Normal(torch.tensor(0.0).double(), 1.0), [dist.transforms.ExpTransform()]),
    ],
    ids=["gamma", "lognormal", "transformed"],
)
def test_a_noise_prior_with_more_bits_than_the_network(prior):
    """Guides join all latents in one vector, which would get the prior's dtype and not fit the network."""
    noise = likelihoods.Normal(precision=prior)
    with pytest.raises(ArgumentTypeError, match="precision: its prior has dtype torch.float64, .* torch.float32; "):
        BayesianModel(net(), likelihood=noise)
    x = torch.randn(4, 3).double()
    assert BayesianModel(net().double(), likelihood=noise)(x).dtype == torch.float64
    assert BayesianModel(net().double(), likelihood=GAMMA)(x).dtype == torch.float64


def test_noise_of_the_wrong_length_is_an_error_of_the_model():
    x, y = torch.randn(60, 3), torch.randn(60)
    m = model(likelihood=likelihoods.Normal(scale=torch.full((60,), 0.5)))
    for given in ((x,), (x, y)):
        with pytest.raises(ArgumentError, match=r"scale: .*\(60,\)"):
            m(*given)
    # a network that gives [B] itself
    flat = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    rows = BayesianModel(flat, likelihood=likelihoods.Normal(scale=torch.full((60,), 0.5)))
    with pytest.raises(ArgumentError, match=r"scale: .*\(60,\)"):
        rows(x, y)
    one = model(likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0).expand([1]).to_event(1)))
    assert one(x, y).shape == (60,)


@pytest.mark.parametrize("size", [60.5, 60.0, "60", True, torch.tensor(60.0)])
def test_dataset_size_is_whole(size):
    with pytest.raises(
        ArgumentTypeError, match="dataset_size: is .*; pass a whole number, 1 or more, the rows of the whole"
    ):
        model(dataset_size=size)


def test_dataset_size_of_numpy():
    x, y = torch.randn(6, 3), torch.randn(6)
    assert model(dataset_size=np.int64(12))(x, y).shape == (6,)


def test_a_single_logit_is_told_before_the_labels():
    m = BayesianModel(net(1), likelihood=likelihoods.Categorical())
    with pytest.raises(ArgumentError, match="needs at least 2 logits"):
        m(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))


def test_errors():
    x = torch.randn(4, 3)
    with pytest.raises(ArgumentTypeError, match="net: is a function"):
        BayesianModel(lambda x: x, likelihood=GAMMA)
    with pytest.raises(ArgumentTypeError, match="likelihood: is a NoneType"):
        BayesianModel(net())
    with pytest.raises(ArgumentTypeError, match="prior: is a float"):
        BayesianModel(net(), prior=1.0, likelihood=GAMMA)
    with pytest.raises(ArgumentError, match="dataset_size: is 0"):
        model(dataset_size=0)
    with pytest.raises(ArgumentError, match=r"y: has shape \(5,\); the network's output \(4, 1\) asks for \(4,\)"):
        model()(x, torch.randn(5))
    with pytest.raises(ArgumentError, match=r"y: has shape \(4,\); the network's output \(4, 2\)"):
        model(2)(x, torch.randn(4))
    with pytest.raises(ArgumentTypeError, match="x: has dtype torch.float64"):
        model()(x.double())
    with pytest.raises(ArgumentTypeError, match=r"x: is a ndarray of dtype object, which holds no numbers"):
        model()(x.numpy().astype(object))
    with pytest.raises(ArgumentError, match=r"x: has shape \(3,\), and the network makes 1 rows of it"):
        model()(x[0])
    with pytest.raises(ArgumentError, match="x: has no rows"):
        model()(x[:0], torch.zeros(0))

    class Total(nn.Linear):
        def forward(self, x):
            return super().forward(x).sum()

    with pytest.raises(ArgumentError, match="net: returns a single number"):
        BayesianModel(Total(3, 1), likelihood=GAMMA)(x)
    with pytest.raises(ArgumentTypeError, match="y: is a list"):
        model()(x, [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ArgumentError, match="batch shape"):
        BayesianModel(net(), prior=lambda name, record, *, like: dist.Normal(like, like + 1), likelihood=GAMMA)
    with pytest.raises(ArgumentError, match="parameter"):
        BayesianModel(nn.Sequential(nn.ReLU()), likelihood=GAMMA)
    with pytest.raises(ArgumentTypeError, match="net: returns a tuple"):
        BayesianModel(nn.GRU(3, 2), likelihood=GAMMA)(torch.randn(4, 2, 3))
