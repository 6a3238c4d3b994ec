"""What a distribution remembers of its last draw, and when it forgets it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, ImplicitWeights, likelihoods
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.families import BlockGaussianWeights, BlockLayout, MixtureWeights, flat_distribution
from bayeshnet.families.flat_distribution import FlatDistribution
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.normal_density import log_standard_normal
from tests.samplers import perturbed


class Shifted(FlatDistribution):
    """Counts how often its density is that of a draw, of a fixed value, and of any other."""

    def __init__(self, loc):
        super().__init__(torch.Size(), loc.shape)
        self.loc, self.depends_on, self.asked = loc, ({"loc": loc},), []

    def draw(self, num):
        noise = torch.randn(num, len(self.loc))
        return self.loc + noise, noise

    def log_prob_of_draw(self, made_of):
        self.asked.append("draw")
        return log_standard_normal(made_of)

    def log_prob_of(self, rows, made_of):
        self.asked.append("fixed")
        return log_standard_normal(rows - self.loc)

    def _log_prob_at(self, rows):
        self.asked.append("elsewhere")
        return log_standard_normal(rows - self.loc)


def test_which_density_is_asked_for():
    loc = torch.zeros(3, requires_grad=True)
    q = Shifted(loc)
    w = q.rsample((4,))
    for value in (w, w.clone(), w.detach(), w.detach() + 1.0):
        assert q.log_prob(value).shape == (4,)
    with torch.no_grad():
        q.log_prob(w.detach())
        loc.add_(0.1)
    q.log_prob(w)
    assert q.asked == ["draw", "draw", "fixed", "elsewhere", "draw", "elsewhere"]


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.detach().add_(0.1),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach() + 0.1)),
        lambda layer: setattr(layer.weight, "data", layer.weight.detach() + 0.1),
        lambda layer: nn.utils.vector_to_parameters(torch.zeros(2), [layer.weight]),
    ],
    ids=["in_place", "replaced", "other_memory", "views"],
)
def test_a_change_of_a_parameter_is_noticed(change):
    layer = nn.Linear(2, 1, bias=False)
    q = Shifted(torch.zeros(3))
    q.depends_on = (layer._parameters,)
    w = q.sample((4,))
    with torch.no_grad():
        q.log_prob(w)
        change(layer)
        q.log_prob(w)
    assert q.asked == ["draw", "elsewhere"]


def test_shapes_of_batches():
    q = Shifted(torch.zeros(3)).expand((2,))
    w = q.rsample((5,))
    assert w.shape == (5, 2, 3)
    assert q.log_prob(w).shape == (5, 2)
    assert q.log_prob(w[0, 0]).shape == (2,)
    assert q.log_prob(torch.zeros(0, 2, 3)).shape == (0, 2)
    with pytest.raises(ArgumentError, match=r"value: has shape \(5, 2\); its last dimension has to be 3"):
        q.log_prob(w[..., 0])
    with pytest.raises(ArgumentTypeError, match=r"value: is an int; pass a floating-point tensor \[..., 3\]"):
        q.log_prob(3)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q)), lambda q: q.expand((2,))])
def test_a_copy_has_drawn_nothing(again):
    q = ImplicitWeights(perturbed(4, 2))
    w = q.rsample((3,))
    assert q.last_made_of is not None
    other = again(q)
    assert other.last_made_of is None
    w = w.detach().unsqueeze(1)
    torch.testing.assert_close(other.log_prob(w)[..., 0], q.log_prob(w)[..., 0], rtol=1e-4, atol=1e-4)


def nested():
    layout = BlockLayout.of([(3, 2), (3,)], [(0, 1)])
    noise = ImplicitWeights(perturbed(9, 2))
    factors = [torch.zeros(1, 3, 3, 3)]
    blocks = BlockGaussianWeights(torch.zeros(1, 9), torch.zeros(1, 9), factors, layout, noise=noise)
    return MixtureWeights([blocks, ImplicitWeights(perturbed(9, 2))])


def test_the_state_is_computed_once(monkeypatch):
    """By the outermost distribution, at the draw; and once more where the density is asked for."""
    calls: list[int] = []
    state = flat_distribution._state
    monkeypatch.setattr(flat_distribution, "_state", lambda places: calls.append(len(places)) or state(places))
    q = nested()
    with torch.no_grad():
        w = q.rsample((4,))
        assert calls == [len(q.depends_on)]
        q.log_prob(w)
    assert calls == [len(q.depends_on)] * 2
    x = torch.randn(12, 2)
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.3))
    guide = AutoHypernet(model, example=(x, x[:, 0]), conditional=None)
    calls.clear()
    guide.sample_posterior(10)
    assert len(calls) == 1


def test_parameters_deep_inside_are_among_what_it_depends_on():
    q = nested()
    known = {id(t) for place in q.depends_on for t in place.values()}
    for part in (q.components[0].noise, q.components[1]):
        assert {id(param) for param in part.sampler.hnet.parameters()} <= known
    assert {id(q.components[0].loc), id(q.components[0].factors[0])} <= known


def test_a_fixed_noise_scale_is_among_what_a_density_depends_on():
    hnet = HPerturbWrapper(HMLP([[6]], 3, 0, (4,), False), sigma_noise=0.5, noise="shared", verbose=False)
    q = ImplicitWeights(hnet)
    draws = q.rsample((4,)).detach()
    with torch.no_grad():
        hnet.sigma.mul_(2.0)
    torch.testing.assert_close(q.log_prob(draws), ImplicitWeights(hnet).log_prob(draws))
