"""The distribution with conditional layers as an object of its own: its layout, its parts, and old names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions.transforms import ExpTransform

from bayeshnet import AutoHypernet, BayesianModel, likelihoods
from bayeshnet.distributions import ConditionalWeights, FlatLayout, InducingLayers
from bayeshnet.errors import ArgumentError
from bayeshnet.inducing.conditional_weights import NoisePrecision
from bayeshnet.inducing.layers import LayerPrior
from bayeshnet.mnets.chain import Chain, LinearStep


def posterior():
    torch.manual_seed(0)
    x = torch.randn(12, 2)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.3))
    return AutoHypernet(model, example=(x, x[:, 0]), family="mean_field").get_posterior()


def parts(q):
    return {"inducing": q.inducing, "layout": q.layout, "loc": q.loc, "scale": q.scale}


def points(**options):
    chain = Chain((LinearStep(0, None), torch.tanh, LinearStep(1, None)))
    last = LayerPrior(1, None, loc=torch.zeros(3, 5), scale=torch.ones(3, 5))
    return InducingLayers(chain, [last], torch.randn(8, 2), [torch.zeros(8, 3)], [torch.zeros(8)], **options)


def test_layout():
    layout = FlatLayout(((5, 2), (5,), (1, 5), (1,)), 1, ((2, 3),))
    assert layout.sizes == (10, 5, 5, 1, 1)
    assert layout.conditional == {2, 3}
    assert layout.unconditional_sizes == (10, 5, 1)
    assert layout.unconditional_spans == ((0, 15), (21, 22))
    assert layout == FlatLayout(((5, 2), (5,), (1, 5), (1,)), 1, ((2, 3),))
    nothing_else = FlatLayout(((1, 5),), 0, ((0, None),))
    assert nothing_else.unconditional_sizes == (0,)
    assert nothing_else.unconditional_spans == ((5, 5),)


@pytest.mark.parametrize(("is_precision", "expected"), [(True, 0.5), (False, -1.0)])
def test_precision_of_inferred_noise(is_precision, expected):
    log_precision = NoisePrecision(torch.Size(), ExpTransform(), is_precision)(torch.full((3, 1), 0.5))
    torch.testing.assert_close(log_precision, torch.full((3,), expected, dtype=torch.float64))


def test_a_draw_of_many_chunks_has_the_density_of_each(monkeypatch):
    """Without gradients draws are made some at a time; what is remembered is of all of them."""
    monkeypatch.setattr("bayeshnet.inducing.conditional_weights._CHUNK", 1)
    q = posterior()
    with torch.no_grad():
        w = q.rsample((5,))
        log_q = q.log_prob(w)
        q.last_made_of = q._last = None
        q.num_proposals = 1
        single = q.log_prob(w)
    assert log_q.shape == (5,)
    assert bool((log_q - single).abs().max() < 5.0)  # they differ by the effect of resampling, log K at most


def test_unconditional_latents_of_any_distribution():
    """A distribution of Pyro's, which remembers nothing, in place of the family's."""
    q = posterior()
    plain = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(9), torch.ones(9)), 1)
    made = ConditionalWeights(plain, **parts(q))
    w = made.rsample((4,))
    own = made.log_prob(w)
    made._last = None
    torch.testing.assert_close(made.log_prob(w), own)


def test_inducing_and_layout_are_needed():
    q = posterior()
    with pytest.raises(ArgumentError, match="inducing, layout: one is None; pass InducingLayers"):
        ConditionalWeights(q.unconditional, loc=q.loc, scale=q.scale)


# ---------------------------------------------------------------------- old names


@pytest.mark.parametrize(
    ("old", "new"), [("num_candidates", "num_proposals"), ("power", "tempering_exponent"), ("body", "unconditional")]
)
def test_old_arguments_and_attributes_warn_and_work(old, new):
    q = posterior()
    value = {"num_candidates": 5, "power": torch.tensor(0.5), "body": q.unconditional}[old]
    given = parts(q) if old == "body" else {**parts(q), "unconditional": q.unconditional}
    with pytest.warns(
        FutureWarning, match=rf"ConditionalWeights\({old}=...\): is renamed .* ConditionalWeights\({new}"
    ):
        made = ConditionalWeights(**given, **{old: value})
    assert getattr(made, new) is value
    with pytest.warns(FutureWarning, match=rf"ConditionalWeights.{old}: is renamed .* ConditionalWeights.{new}"):
        assert getattr(made, old) is value


def test_names_that_never_were():
    q = posterior()
    with pytest.raises(TypeError, match="unexpected keyword argument 'rivals'"):
        ConditionalWeights(q.unconditional, **parts(q), rivals=3)
    with pytest.raises(AttributeError, match="no attribute 'rivals'"):
        _ = q.rivals
    with pytest.raises(TypeError, match="unexpected keyword argument 'rivals'"):
        points(rivals=True)


def test_old_name_of_the_sizes():
    with pytest.warns(FutureWarning, match=r"FlatLayout.body_sizes: is renamed .* FlatLayout.unconditional_sizes"):
        assert FlatLayout(((5, 2), (1, 5)), 0, ((1, None),)).body_sizes == [10, 0]


def test_old_name_of_logit_differences():
    with pytest.warns(FutureWarning, match=r"InducingLayers\(contrasts=...\): is renamed .*logit_differences"):
        assert points(contrasts=True).common is not None
    assert points(logit_differences=True).common is not None
    assert points().common is None
