from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value

from bayeshnet import AutoHypernetDelta, fit, predict
from bayeshnet.errors import ArgumentError
from bayeshnet.hnets import HMLP
from tests.problems import EFFECTS, ERRORS, bnn, eight_schools
from tests.scenarios import PREDICTIVE, PROBLEMS


@pytest.mark.filterwarnings("ignore::bayeshnet.errors.DatasetSizeWarning")  # one minibatch, again and again
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_loss_is_the_log_joint(problem):
    model, args = PROBLEMS[problem]()
    guide = AutoHypernetDelta(model, example=args)
    fit(model, guide, args, steps=20, num_particles=1, progress=False)
    conditioned = poutine.condition(model, data=guide.median())
    expected = -float(poutine.trace(conditioned).get_trace(*args).log_prob_sum())
    for particles in ({"num_particles": 1}, {"num_particles": 3, "vectorize_particles": True}):
        for elbo in (Trace_ELBO(**particles), TraceMeanField_ELBO(**particles)):
            assert elbo.loss(model, guide, *args) == pytest.approx(expected, rel=1e-4)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize(("problem", "parallel"), PREDICTIVE)
def test_predictive(problem, parallel):
    model, args = PROBLEMS[problem]()
    guide = AutoHypernetDelta(model, example=args)
    inputs = args if problem == "constrained" else args[:1]
    out = Predictive(model, guide=guide, num_samples=4, parallel=parallel)(*inputs)
    assert out["obs"].shape == (4, len(args[-1]))
    for name, value in guide.median().items():
        torch.testing.assert_close(out[name].reshape(4, *value.shape)[2], value)


def test_same_mode_as_auto_delta():
    """Constrained latents included: the mode of the density in their own coordinates."""
    y = torch.tensor([0.5, 1.0, 4.0])

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Exponential(rate), obs=y)

    guide, other = AutoHypernetDelta(model, example=(y,)), AutoDelta(model)
    for each in (guide, other):
        fit(model, each, (y,), steps=600, num_particles=1, progress=False)
    exact = (2.0 + 3.0 - 1.0) / (1.0 + float(y.sum()))
    assert float(guide.median()["rate"]) == pytest.approx(exact, rel=1e-3)
    assert float(other.median()["rate"]) == pytest.approx(exact, rel=1e-2)


def test_map_of_a_network():
    model, (x, y) = bnn()
    guide = AutoHypernetDelta(model, example=(x, y))
    history = fit(model, guide, (x, y), steps=300, num_particles=1, progress=False)
    assert history.losses[-1] < history.losses[0] - 10
    pred = predict(model, guide, x, num_samples=3)
    assert float(pred.epistemic.max()) < 1e-6
    assert float((pred.mean - y).square().mean()) < 0.2 * float(y.var())


def test_conditions_start_and_whitening():
    model, args = eight_schools, (ERRORS, EFFECTS)

    def build(shapes):
        hnet = HMLP(shapes, cond_in_size=4, num_cond_embs=3, layers=(8,), verbose=False)
        hnet.apply_hyperfan_init()
        return hnet

    guide = AutoHypernetDelta(model, example=args, hnet=build, cond_id=2, whiten=False)
    expected = guide.hnet(cond_id=2, ret_format="flattened").squeeze(0)
    assert torch.equal(guide.latent(), expected)
    guide.cond_id = 0
    assert not torch.equal(guide.latent(), expected)
    start = {"mu": torch.tensor(4.0), "tau": torch.tensor(2.0), "eta": torch.full((8,), 0.5)}
    for hnet in (None, build):
        cond_id = 0 if hnet is build else None
        init = init_to_value(values=start)
        guide = AutoHypernetDelta(model, example=args, hnet=hnet, cond_id=cond_id, init_loc_fn=init)
        for name, value in guide.quantiles([0.2, 0.8]).items():
            torch.testing.assert_close(value, start[name].expand(2, *start[name].shape))
    assert repr(guide) == "AutoHypernetDelta(latent_dim=10, sites=3, hnet=HMLP, cond_id=0)"


def test_move_to():
    model, args = bnn()
    guide = AutoHypernetDelta(model, example=args)
    before, wanted = guide.latent(), torch.randn(guide.latent_dim)
    wanted[2] = math.nan
    guide.move_to(wanted)
    torch.testing.assert_close(guide.latent(), torch.where(wanted.isnan(), before, wanted))
    with pytest.raises(ArgumentError, match="mean: has shape"):
        guide.move_to(wanted[1:])
