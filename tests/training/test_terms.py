"""The two parts of the ELBO, and the same loss with and without them."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

from bayeshnet import AutoHypernet, fit
from bayeshnet.training._terms import Terms
from tests.problems import Y, bnn, normal_model

PARTICLES = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}
ELBOS = [
    Trace_ELBO(**PARTICLES),
    Trace_ELBO(num_particles=3),
    TraceMeanField_ELBO(**PARTICLES),
    TraceGraph_ELBO(**PARTICLES),
]


@pytest.mark.parametrize("elbo", ELBOS, ids=lambda elbo: f"{type(elbo).__name__} {elbo.vectorize_particles}")
def test_the_same_loss_and_the_likelihoods_part_of_it(elbo):
    pyro.set_rng_seed(0)
    model, (x, y) = bnn(dataset_size=60)  # half of the rows: scaled by 2
    guide = AutoHypernet(model, example=(x, y))
    terms, before = Terms(elbo), dict(vars(elbo))
    state = torch.get_rng_state()
    plain = elbo.loss_and_grads(model, guide, x, y)
    gradients = [param.grad.clone() for param in guide.parameters() if param.grad is not None]
    for param in guide.parameters():
        param.grad = None
    torch.set_rng_state(state)
    assert terms.elbo.loss_and_grads(model, guide, x, y) == plain
    noted = [param.grad for param in guide.parameters() if param.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, noted, strict=True))
    assert vars(elbo) == before
    # The same draws once more, evaluated by hand.
    torch.set_rng_state(state)
    total = 0.0
    for model_trace, _ in elbo._get_traces(model, guide, (x, y), {}):
        total += float(model_trace.nodes["obs"]["log_prob_sum"].detach()) / elbo.num_particles
    assert terms.take() == pytest.approx(total, rel=1e-6)
    assert terms.take() == 0.0


def test_the_history_has_both():
    model, data = bnn()
    guide = AutoHypernet(model, example=data)
    history = fit(model, guide, data, 5, progress=False)
    assert len(history.kl) == len(history.log_likelihood) == 5
    for loss, likelihood, kl in zip(history.losses, history.log_likelihood, history.kl, strict=True):
        assert loss == pytest.approx(kl - likelihood)
    # With the divergence in closed form the terms are those of the Gaussian.
    plain = AutoNormal(normal_model)
    field = TraceMeanField_ELBO(num_particles=2)
    assert len(fit(normal_model, plain, (Y,), 2, loss=field, progress=False).kl) == 2


@pytest.mark.parametrize("kind", [RenyiELBO, type("Mine", (Trace_ELBO,), {})], ids=["Renyi", "derived"])
def test_no_terms_of_what_may_compute_anything(kind):
    history = fit(normal_model, AutoNormal(normal_model), (Y,), 2, loss=kind(num_particles=2), progress=False)
    assert (history.kl, history.log_likelihood, len(history)) == ([], [], 2)
