"""What guides choose by the number of latents, what their summary says, and what is refused before it is built."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pytest
import torch
from torch import nn

from bayeshnet import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    families,
    fit,
    likelihoods,
    load_posterior,
    predict,
    save,
)
from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.families._blocks import BlockLayout
from bayeshnet.families.base import Start
from bayeshnet.sites import memory

ROWS, INPUTS = 64, 100


def problem(hidden, rows=ROWS, dataset_size=None):
    net = nn.Sequential(nn.Linear(INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1), dataset_size=dataset_size)
    x = torch.randn(rows, INPUTS)
    return model, (x, x[:, 0])


SMALL, LARGE = 980, 981  # 98,981 + 981 + ... weights: the last below and the first above 100,000


def test_the_networks_are_on_both_sides():
    assert problem(SMALL)[0].net.num_params == 99_961
    assert problem(LARGE)[0].net.num_params == 100_063


def test_a_default_up_to_100_000_latents_is_what_it_was_to_the_bit():
    model, example = problem(20)
    torch.manual_seed(1)
    by_default = AutoHypernet(model, example=example)
    torch.manual_seed(1)
    named = AutoHypernet(model, example=example, family=families.Hypernet())
    assert repr(by_default) == repr(named)
    assert all(torch.equal(a, b) for a, b in zip(by_default.parameters(), named.parameters(), strict=True))
    assert by_default.default_particles == 16
    assert by_default.choices() == []


def test_just_below_it_is_the_hypernetwork_with_all_its_points():
    model, example = problem(SMALL, dataset_size=1000)
    guide = AutoHypernet(model, example=example)
    assert isinstance(guide.family, families.Hypernet)
    assert guide.inducing.num_inducing == 190


@pytest.mark.parametrize("rows", [16, 39, 40, 64])
def test_a_default_beyond_that_is_bounded(rows):
    model, example = problem(LARGE, rows, dataset_size=60_000)
    guide = AutoHypernet(model, example=example)
    assert isinstance(guide.family, families.MeanField)
    assert guide.num_parameters <= 3 * guide.latent_dim
    points = 0 if guide.inducing is None else guide.inducing.num_inducing
    assert points == (rows // 10 if rows >= 40 else 0)
    assert "family=MeanField() (" in repr(guide)
    assert f"latents: more than 100,000; the hypernetwork would have {guide.choices()[0].split()[-3]} M" in repr(guide)
    wanted = f"num_inducing={points} (a tenth of a step of {rows} rows)" if points else "conditional=None (a tenth of"
    assert wanted in repr(guide)
    assert guide.default_particles == 15


def test_what_is_asked_for_is_what_there_is():
    model, example = problem(LARGE, 16)
    guide = AutoHypernet(model, example=example, family="low_rank", conditional="last", num_inducing=30)
    assert isinstance(guide.family, families.LowRank)
    assert guide.inducing.num_inducing == 30
    assert "more than" not in repr(guide)


def test_means_start_at_draws_from_the_prior_where_the_family_is_chosen():
    model, example = problem(LARGE, 16)
    chosen = AutoHypernet(model, example=example).family.loc
    named = AutoHypernet(model, example=example, family="mean_field").family.loc
    error = 5 / math.sqrt(2 * len(chosen))  # five standard errors of a standard deviation of 1
    assert chosen.std().item() == pytest.approx(1.0, abs=error)
    assert named.std().item() == pytest.approx(0.3, abs=0.3 * error)


def test_an_example_of_all_rows_counts_as_the_batch_that_fit_takes_of_them():
    model, example = problem(LARGE, 10_500, dataset_size=10_500)
    assert AutoHypernet(model, example=example).inducing.num_inducing == 100


def test_a_fit_in_smaller_batches_keeps_fewer_points_with_their_weight():
    model, example = problem(LARGE, dataset_size=ROWS)
    guide = AutoHypernet(model, example=example)
    assert guide.inducing.num_inducing == 6
    total = guide.inducing.points[-1].log_precision.exp().sum().item()
    copied = copy.deepcopy(guide)
    guide.expect_batch(32)
    assert guide.inducing.num_inducing == 3
    assert guide.inducing.points[-1].log_precision.exp().sum().item() == pytest.approx(total)
    assert "num_inducing=3 (a tenth of a step of 32 rows)" in repr(guide)
    history = fit(model, copied, example, steps=2, batch_size=32, num_particles=1, progress=False)
    assert copied.inducing.num_inducing == 3
    assert history.num_particles == 1
    copied.expect_batch(16)  # what was learned is not dropped
    assert copied.inducing.num_inducing == 3
    assert guide.get_posterior().rsample((2,)).shape == (2, guide.latent_dim)


def test_points_that_were_asked_for_stay():
    model, example = problem(LARGE)
    guide = AutoHypernet(model, example=example, num_inducing=20)
    guide.expect_batch(16)
    assert guide.inducing.num_inducing == 20


def test_a_saved_guide_predicts_the_same_to_the_bit(tmp_path):
    model, example = problem(LARGE, dataset_size=ROWS)
    guide = AutoHypernet(model, example=example)
    fit(model, guide, example, steps=2, batch_size=50, num_particles=2, progress=False)
    save(tmp_path / "run", model=model, guide=guide)
    loaded = load_posterior(tmp_path / "run", nn.Sequential(nn.Linear(INPUTS, LARGE), nn.Tanh(), nn.Linear(LARGE, 1)))
    for each in (loaded.guide, pickle.loads(pickle.dumps(guide))):
        draws = []
        for m, g in ((model, guide), (loaded.model, each)):
            torch.manual_seed(3)
            draws.append(predict(m, g, example[0][:4], 5).draws)
        assert torch.equal(*draws)


@pytest.mark.parametrize("kind", [AutoHypernetNormal, AutoHypernetDelta])
def test_explicit_guides_are_chunked_beyond_100_000_latents(kind):
    model, example = problem(LARGE, 4)
    guide = kind(model, example=example)
    assert guide.num_parameters < guide.latent_dim
    assert "ChunkedHMLP (100 k latents: more than 100,000, so that it is chunked)" in repr(guide).replace(
        "100,063", "100 k"
    )


# ---------------------------------------------------------------------- numbers of parameters


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("shapes", [[[3, 2], [3]], [[30, 10], [30]]])
@pytest.mark.parametrize(
    "family",
    [
        families.MeanField(),
        families.LowRank(5),
        families.Hypernet(),
        families.Hypernet(noise_dim=3, hidden_layers=[8]),
        families.BlockGaussian(),
        families.Mixture(families.LowRank(2), 3),
        families.Mixture("hypernet", 2),
    ],
    ids=repr,
)
def test_the_number_of_parameters_is_known_before(family, shapes, blocks):
    size = sum(math.prod(shape) for shape in shapes)
    start = Start(shapes, torch.zeros(size), blocks=BlockLayout.of(shapes, [(0, 1)]) if blocks else None)
    assert family.num_parameters(start) == sum(param.numel() for param in family.build(start).parameters())


# ---------------------------------------------------------------------- what does not fit


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device="cpu": 300_000_000)
    monkeypatch.setattr(memory, "_SMALL", 1_000_000)


def test_a_family_that_does_not_fit_is_refused_before_it_is_built(little_memory, monkeypatch):
    model, example = problem(LARGE, 16)
    monkeypatch.setattr(families.LowRank, "init_parameters", lambda *_: pytest.fail("was built"))
    with pytest.raises(
        ArgumentError, match=r"family: is LowRank\(rank=500\) with 100\.\d M parameters for 100 k|100\.2 M"
    ) as e:
        AutoHypernet(model, example=example, family=families.LowRank(500))
    assert "300 MB are left" in str(e.value)
    assert "pass family='mean_field' (2 parameters each, 5" in str(e.value)
    AutoHypernet(model, example=example)


def test_a_step_with_too_many_particles_is_refused(little_memory):
    model, example = problem(LARGE, 16)
    guide = AutoHypernet(model, example=example)
    with pytest.raises(ArgumentError, match="num_particles: is 5000, of .* pass num_particles=15"):
        fit(model, guide, example, steps=1, num_particles=5000, progress=False)
    with pytest.raises(ArgumentError, match="num_particles: is 5000"):
        guide.summary(num_samples=5000)


def test_a_prediction_with_too_many_draws_is_refused(little_memory):
    model, example = problem(LARGE, 16)
    with pytest.raises(ArgumentError, match=r"num_samples: is 5000, .* predict_summary"):
        predict(model, AutoHypernet(model, example=example), example[0], 5000)


# ---------------------------------------------------------------------- the summary


def state_of(model, guide):
    tensors = [t for part in (model, guide) for t in (*part.parameters(), *part.buffers())]
    return [t.detach().clone() for t in tensors], torch.get_rng_state()


class Counting(nn.Module):
    """A network with a buffer that each call replaces."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.layer(x)


@pytest.mark.parametrize("kind", [AutoHypernet, AutoHypernetNormal, AutoHypernetDelta])
def test_a_measured_step_leaves_everything_as_it_was(kind):
    pyro.clear_param_store()
    model = BayesianModel(Counting(), likelihood=likelihoods.Normal(scale=0.5, learn=True))
    x = torch.randn(20, 3)
    guide = kind(model, example=(x, x[:, 0]))
    next(guide.parameters()).grad = torch.ones_like(next(guide.parameters()))
    tensors, random = state_of(model, guide)
    made = guide.summary(num_samples=4)
    after, random_after = state_of(model, guide)
    assert all(torch.equal(a, b) for a, b in zip(tensors, after, strict=True))
    assert torch.equal(random, random_after)
    assert bool((next(guide.parameters()).grad == 1).all())
    assert made.seconds > 0
    assert made.memory_measured > 0
    assert made.as_dict()["parameters_per_weight"] == guide.num_parameters / guide.latent_dim
    fit(model, guide, (x, x[:, 0]), steps=2, progress=False)  # nothing is in the way of a fit


def test_a_fit_goes_on_as_without_a_measured_step():
    ends = []
    for measured in (False, True):
        torch.manual_seed(0)
        model, example = problem(5)
        guide = AutoHypernet(model, example=example)

        def look(step, history, guide=guide, measured=measured):
            if measured:
                guide.summary()

        fit(model, guide, example, steps=3, callbacks=[look], progress=False)
        ends.append([param.detach().clone() for param in guide.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_summary_of_a_large_network():
    model, example = problem(LARGE, 64)
    guide = AutoHypernet(model, example=example)
    made = guide.summary(num_samples=4)
    assert (made.weights, made.parameters, made.num_inducing) == (guide.latent_dim, guide.num_parameters, 6)
    assert made.inducing_share == pytest.approx(6 / 70)
    assert 0.5 < made.memory_estimated / made.memory_measured < 2.0
    for part in (
        "generator parameters",
        "inducing points        6, 8.6% of the rows",
        "4 samples, 64 rows",
        "chosen: ",
    ):
        assert part in repr(made)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*example), batch_size=8, shuffle=True)
    assert guide.summary(batches, measure=False).rows == 8


def test_a_plain_pyro_model_has_a_summary():
    def model(y):
        scale = pyro.sample("scale", pyro.distributions.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", pyro.distributions.Normal(0.0, scale), obs=y)

    made = AutoHypernet(model, example=(torch.randn(5),)).summary(num_samples=3)
    assert (made.weights, made.rows, made.num_inducing) == (1, None, 0)


def test_unusable_arguments_of_a_summary():
    model, example = problem(5)
    guide = AutoHypernet(model, example=example)
    with pytest.raises(ArgumentError, match="num_samples: is 0"):
        guide.summary(num_samples=0)
    with pytest.raises(ArgumentError, match="data: is an empty iterable"):
        guide.summary([])
    with pytest.raises(UsageError, match="copy without its model"):
        copy.deepcopy(guide).summary()
