"""Guides whose family is a mixture."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, fit, load, predict, save
from bayeshnet.entropy import ChangeOfVariables, Linearised
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.families import Hypernet, Mixture
from bayeshnet.hnets import HMLP
from tests.problems import bnn
from tests.scenarios import PREDICTIVE, PROBLEMS, assert_elbos_agree

MIXTURES = {
    "mean field": Mixture(num_components=3),
    "low rank": Mixture("low_rank", 2),
    "hypernetworks": Mixture("hypernet", 2),
}
GUIDES = {
    **{
        (kind, conditional): {"family": family, "conditional": conditional}
        for kind, family in MIXTURES.items()
        for conditional in ("auto", None)
    },
    ("one hypernetwork", "auto"): {"family": Hypernet(num_components=3)},
}


@pytest.mark.filterwarnings("ignore::bayeshnet.errors.DatasetSizeWarning")  # one minibatch, again and again
@pytest.mark.parametrize("problem", PROBLEMS)
def test_elbos_agree(problem):
    """All bounds see one density, with draws that are shared out and with draws one by one."""
    model, args = PROBLEMS[problem]()
    guide = AutoHypernet(model, example=args, family=Mixture(num_components=3))
    fit(model, guide, args, steps=60, progress=False)
    assert_elbos_agree(model, guide, args, loops=80)


def test_elbos_agree_for_components_of_one_hypernetwork():
    model, args = bnn()
    guide = AutoHypernet(model, example=args, family=Hypernet(num_components=2))
    fit(model, guide, args, steps=60, progress=False)
    assert "correlated within units, num_components=2), conditional=" in repr(guide)
    assert_elbos_agree(model, guide, args, loops=80)


@pytest.mark.parametrize(("problem", "parallel"), PREDICTIVE)
def test_predictive(problem, parallel):
    model, args = PROBLEMS[problem]()
    guide = AutoHypernet(model, example=args, family=Mixture(num_components=2))
    inputs = args if problem == "constrained" else args[:1]
    out = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(*inputs)
    assert out["obs"].shape == (6, len(args[-1]))
    for site in guide.sites:
        assert len(torch.unique(out[site.name].reshape(6, -1), dim=0)) == 6


@pytest.mark.parametrize("options", GUIDES.values(), ids=map(str, GUIDES))
def test_minibatches_checkpoints_and_copies(options, tmp_path):
    model, (x, y) = bnn(dataset_size=30)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)

    def build():
        return AutoHypernet(model, example=(x, y), **options)

    guide = build()
    pointers = [t.data_ptr() for t in guide.state_dict().values()]
    assert len(pointers) == len(set(pointers)) == len(list(guide.parameters())) + len(list(guide.buffers()))
    before = [p.detach().clone() for p in guide.parameters()]
    history = fit(model, guide, loader, steps=6, num_particles=6, progress=False)
    assert all(map(math.isfinite, history.losses))
    # Every component learns, and nothing is kept in Pyro's store.
    assert all(not torch.equal(old, new) for old, new in zip(before, guide.parameters(), strict=True))
    assert not list(pyro.get_param_store().keys())
    save(tmp_path / "guide", guide=guide)
    other = build()
    load(tmp_path / "guide", guide=other)
    expected = None
    for each in (guide, other, copy.deepcopy(guide)):
        torch.manual_seed(3)
        draws = each.sample_posterior(5)["0.weight"]
        expected = draws if expected is None else expected
        assert torch.equal(draws, expected)
    assert predict(model, guide, x, num_samples=7).draws.shape[0] == 7


def test_both_modes_are_found_with_their_weights():
    """The means of a mixture of two Gaussians, whose labels may be exchanged: as much on either side."""
    y = torch.tensor([-2.2, -2.0, -1.7, -1.9, 1.6, 1.9, 2.1, 2.4])

    def model(y):
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("rows", len(y)):
            parts = dist.Normal(means, 0.5)
            pyro.sample("obs", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts), obs=y)

    torch.manual_seed(0)
    guide = AutoHypernet(model, example=(y,), family=Mixture(num_components=4))
    fit(model, guide, (y,), steps=600, lr=0.03, progress=False)
    draws = guide.sample_posterior(4000)["means"]
    ordered = draws.sort(1).values
    # Each group of four: standard error 0.5 / sqrt(4) of its mean, a little less by the prior.
    torch.testing.assert_close(ordered.mean(0), torch.tensor([-1.95, 2.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(ordered.std(0), torch.tensor([0.25, 0.25]), atol=0.05, rtol=0)
    share = float((draws[:, 0] < draws[:, 1]).float().mean())
    assert share in (pytest.approx(0.25, abs=0.01), pytest.approx(0.5, abs=0.01), pytest.approx(0.75, abs=0.01))


def test_hypernetwork_components_agree_with_the_density_elsewhere():
    model, args = bnn(dtype=torch.float64)
    guide = AutoHypernet(model, example=args, family=Mixture(Hypernet(noise_dim=3), 2), conditional=None)
    fit(model, guide, args, steps=10, num_particles=4, progress=False)
    posterior = guide.get_posterior()
    draws = posterior.rsample((12,))
    fresh = guide.get_posterior().log_prob(draws)
    torch.testing.assert_close(fresh, posterior.log_prob(draws), rtol=1e-6, atol=1e-6)
    assert guide.diagnose(num_samples=16).values["entropy_excess"] < 0.05


def test_own_hypernetworks_and_repr():
    model, args = bnn()
    guide = AutoHypernet(
        model, example=args, family=Mixture(Hypernet(lambda shapes: HMLP(shapes, 2, 0, (4,), False)), 2)
    )
    assert len(guide.family.components) == 2
    assert all(part.estimator.num_starts == 2 for part in guide.family.components)
    assert "family=Mixture(Hypernet(hnet=HMLP, noise_dim=2, " in repr(guide)
    assert "family=Mixture(MeanField(), 4)" in repr(AutoHypernet(model, example=args, family="mixture"))
    assert len(guide.param_groups(0.1)[1]["params"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"family": lambda: Hypernet(num_components=3), "conditional": None},
            "num_components: is 3, and no layer is conditional here",
        ),
        (
            {"family": lambda: Hypernet(lambda shapes: HMLP(shapes, 2, 0), num_components=3)},
            "hnet, num_components: both were given",
        ),
        ({"family": lambda: Mixture(num_components=0)}, "num_components: is 0; pass a whole number, 1 or more"),
        ({"family": lambda: Hypernet(num_components=2.0)}, "num_components: is 2.0, a float; pass a whole number"),
        (
            {"family": lambda: Mixture(Hypernet(noise="independent"), 2)},
            "noise: is 'independent', and the hypernetworks",
        ),
        (
            {
                "family": lambda: Mixture(
                    Hypernet(lambda shapes: HMLP(shapes, 2, 0, (4,), False), estimator=Linearised()), 2
                )
            },
            "Linearised applies to independent noise",
        ),
        (
            {"family": lambda: Mixture(Hypernet(HMLP([[2]], 2, 0, (4,), False)), 2)},
            "hnet: is one hypernetwork, and each component of a mixture needs its own",
        ),
    ],
)
def test_errors(options, message):
    model, args = bnn()
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        AutoHypernet(model, example=args, **{**options, "family": options["family"]()})


def test_errors_of_the_description():
    with pytest.raises(ArgumentError, match="of: is 'mean'; pass one of 'block_gaussian', 'hypernet', 'low_rank'"):
        Mixture("mean", 2)
    with pytest.raises(ArgumentTypeError, match="of: is an int; pass a family such as LowRank"):
        Mixture(2)
    assert repr(ChangeOfVariables(num_starts=2)) == "ChangeOfVariables(num_starts=2)"


def test_a_mixture_of_mixtures_is_a_mixture():
    model, args = bnn()
    guide = AutoHypernet(model, example=args, family=Mixture(Mixture("mean_field", 2), 3), conditional=None)
    draws = guide.get_posterior().rsample((6,))
    leaves = [leaf for part in guide.family.parts() for leaf in part.parts()]
    each = torch.stack([leaf.distribution(guide.loc, guide.scale).log_prob(draws) for leaf in leaves])
    torch.testing.assert_close(guide.get_posterior().log_prob(draws), each.logsumexp(0) - math.log(6))
