"""Which parameters are Bayesian, and what becomes of the others: points, frozen values, points under a prior."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from bayeshnet import (
    MLP,
    AutoHypernet,
    AutoHypernetDelta,
    BayesianModel,
    batched_forward,
    fit,
    likelihoods,
    load,
    load_posterior,
    predict,
    priors,
    sample_networks,
    save,
)
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.models.parts import Parts
from tests.tested_rows import check_rows

NOISE = likelihoods.Normal(scale=0.1)


def net():
    return nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1))


def data(rows=30):
    x = torch.randn(rows, 2)
    return x, x[:, 0].sin() + 0.1 * torch.randn(rows)


def built(network=None, **options):
    return BayesianModel(net() if network is None else network, likelihood=NOISE, **options)


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]


@pytest.mark.parametrize(
    ("bayesian", "expected"),
    [
        (None, NAMES),
        ("all", NAMES),
        ("last_layer", ["3.weight", "3.bias"]),
        ("norm", ["1.weight", "1.bias"]),
        ("*.weight", ["0.weight", "1.weight", "3.weight"]),
        (["*", "!0.*", "!1.bias"], ["1.weight", "3.weight", "3.bias"]),
        (["!0.*"], NAMES[2:]),
        (Parts(include="*.bias", exclude="3.*"), ["0.bias", "1.bias"]),
        (nn.Linear, ["0.weight", "0.bias", "3.weight", "3.bias"]),
        ((nn.LayerNorm,), ["1.weight", "1.bias"]),
        (lambda name, record: name.startswith("3") and len(record.shape) == 2, ["3.weight"]),
    ],
)
def test_what_is_chosen_is_a_site(bayesian, expected):
    model = built(bayesian=bayesian)
    assert list(model.latent_shapes) == expected
    assert list(model.net.param_names) == expected
    others = {} if expected == NAMES else {name for name in NAMES if name not in expected}
    assert set(getattr(model.net, "learned_names", ())) == set(others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bayesian": "*.wait"}, r"bayesian: '\*.wait' matches nothing; there are \['0.weight'"),
        ({"bayesian": ["*.weight", "!7.*"]}, r"'7.\*' matches nothing"),
        ({"bayesian": nn.Conv2d}, r"Conv2d has no parameters here .*; the modules are \['LayerNorm', 'Linear'"),
        ({"bayesian": lambda name, record: False}, "leaves no parameter"),
        ({"bayesian": ["*.weight", "!*"]}, "leaves no parameter"),
        ({"bayesian": []}, "empty sequence"),
        ({"bayesian": "last_layer", "others": {"9.*": "frozen"}}, r"others: '9.\*' matches nothing"),
        ({"bayesian": "last_layer", "others": "fixed"}, "others: is 'fixed'; pass 'learned', 'frozen' or a prior"),
        ({"others": "frozen"}, "all parameters are Bayesian"),
        ({"bayesian": "last_layer", "others": priors.Normal(learn=True)}, "learns its scale"),
    ],
)
def test_what_matches_nothing_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        built(**options)


def test_what_is_no_choice_is_refused():
    for options in ({"bayesian": 3}, {"bayesian": lambda: True}, {"bayesian": "norm", "others": 2.0}):
        with pytest.raises(ArgumentTypeError, match=r"bayesian:|others:"):
            built(**options)
    with pytest.raises(ArgumentError, match="'norm' finds no parameters"):
        built(nn.Linear(2, 1), bayesian="norm")


def test_a_frozen_parameter_is_not_chosen():
    network = net()
    network[0].requires_grad_(False)
    model = built(network, bayesian="*.weight")
    assert list(model.latent_shapes) == ["1.weight", "3.weight"]
    assert model.net.frozen_names == ("0.weight", "0.bias")
    with pytest.raises(ArgumentError, match=r"Frozen \(requires_grad=False\): \['0.weight', '0.bias'\]"):
        built(network, bayesian="0.*")


def test_repr_says_what_is_what():
    shown = repr(built(bayesian="3.*", others={"0.*": "frozen", "1.*": priors.Normal()}))
    assert "Bayesian 2 of 6 tensors, 5 of 25 numbers: ['3.weight', '3.bias']" in shown
    assert "learned under a prior ['1.weight', '1.bias']; frozen ['0.weight', '0.bias']" in shown


def own():
    return MLP(n_in=2, n_out=1, hidden_layers=(4,), verbose=False)


def padded():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3, padding_idx=0)
            self.head = nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.table((x[:, :1] > 0).long()).mean(1))

    return Words()


def tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.head(self.second(self.first(x).tanh()).tanh())

    return Tied()


def parametrised():
    return nn.Sequential(weight_norm(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 1))


def recurrent():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])

    return Recurrent()


def normalised():
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


NETWORKS = [net, own, padded, tied, parametrised, recurrent, normalised]


@pytest.mark.parametrize("others", ["learned", "frozen"])
@pytest.mark.parametrize("make", NETWORKS)
def test_with_its_own_values_it_is_the_network(make, others):
    torch.manual_seed(1)
    network = make().double()
    model = built(network, bayesian="last_layer", others=others)
    own_values = dict(zip(network.param_names, network.internal_params, strict=True)) if make is own else None
    values = dict(network.named_parameters()) if own_values is None else own_values
    weights = {name: values[name].detach().unsqueeze(0) for name in model.net.param_names}
    x = torch.randn(6, 2, dtype=torch.float64)
    found = batched_forward(model.net, {name: torch.cat([w, w + 0.0]) for name, w in weights.items()}, x)
    torch.testing.assert_close(found[0], network(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], network(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", NETWORKS)
def test_learned_points_move_and_nothing_else(make):
    torch.manual_seed(2)
    network = make()
    before = copy.deepcopy(network.state_dict())
    x, y = data()
    model = built(network, bayesian="last_layer")
    points = {name: value.detach().clone() for name, value in model.net.learned_values().items()}
    guide = AutoHypernet(model, example=(x, y), family="mean_field")
    fit(model, guide, (x, y), 3, num_particles=2, progress=False)
    moved = {
        name: float((value.detach() - points[name]).abs().max()) for name, value in model.net.learned_values().items()
    }
    assert points
    # A bias before batch norm has no effect, and so no gradient but rounding errors.
    assert all(step > 0 for name, step in moved.items() if make is not normalised or name != "0.bias"), moved
    if make is padded:
        assert torch.equal(model.net.learned_values()["table.weight"][0], points["table.weight"][0])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    (drawn,) = sample_networks(guide, 1)
    model.eval()
    if make is not own:  # the keys of the user's network, with the points as they are now
        state = drawn.state_dict()
        assert set(state) == set(before)
        for name, value in model.net.learned_values().items():
            assert torch.equal(state[name], value)
            assert dict(drawn.named_parameters(remove_duplicate=False))[name].requires_grad


def test_frozen_values_are_equal_to_the_bit_after_a_fit():
    torch.manual_seed(3)
    network, (x, y) = net(), data()
    model = built(network, bayesian="last_layer", others="frozen")
    assert not list(model.net.parameters())
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), 5, progress=False)
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, network.state_dict()[name.removeprefix("module.")])


def test_points_are_in_a_plain_svi():
    torch.manual_seed(4)
    x, y = data()
    model = built(bayesian="last_layer")
    guide = AutoHypernet(model, example=(x, y))
    before = {name: value.detach().clone() for name, value in model.net.learned_values().items()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=2, vectorize_particles=True))
    svi.step(x, y)
    for name, value in model.net.learned_values().items():
        assert not torch.equal(value, before[name])


def test_features_of_the_conditional_layer_follow_the_points():
    """The guide's conditional last layer takes the model's own points, not a copy of their start."""
    torch.manual_seed(5)
    x, y = data()
    model = built(bayesian="last_layer")
    guide = AutoHypernet(model, example=(x, y), conditional="last")
    assert "conditional=[3.weight]" in repr(guide)
    mine = {id(param) for param in model.net.parameters()}
    assert mine <= {id(param) for param in guide.parameters()}
    assert mine <= {id(param) for group in guide.param_groups(0.01) for param in group["params"]}
    with torch.no_grad():  # features of size 0: the layer's posterior is then its prior but for the bias
        model.net.module[1].weight.zero_()
        model.net.module[1].bias.zero_()
    draws = guide.sample_posterior(2000)["3.weight"].reshape(2000, 4)
    # Draws of independent N(0, 1/4) numbers: the mean has a standard error of 0.5 / sqrt(2000) = 0.011.
    assert float(draws.mean(0).abs().max()) < 4.5 * 0.5 / 2000**0.5
    torch.testing.assert_close(draws.std(0), torch.full((4,), 0.5), rtol=0.07, atol=0)


def test_ridge_regression_is_the_map_under_a_prior():
    """A network without a Bayesian part that matters: points under a Normal prior are ridge regression."""
    torch.manual_seed(6)
    x = torch.randn(40, 3, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.3 * torch.randn(40, dtype=torch.float64)

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.zeros(3, dtype=torch.float64))
            self.offset = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            return (x @ self.slope + 0.0 * self.offset).unsqueeze(-1)

    scale, noise = 0.5, 0.3
    model = BayesianModel(
        Sum(), likelihood=likelihoods.Normal(scale=noise), bayesian="offset", others=priors.Normal(scale=scale)
    )
    guide = AutoHypernetDelta(model, example=(x, y))
    fit(model, guide, (x, y), 3, num_particles=4, progress=False)
    optimizer = torch.optim.LBFGS(model.net.parameters(), max_iter=100, line_search_fn="strong_wolfe")
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)

    def closure():
        optimizer.zero_grad()
        loss = elbo.differentiable_loss(model, guide, x, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    ridge = torch.linalg.solve(x.T @ x + (noise / scale) ** 2 * torch.eye(3, dtype=torch.float64), x.T @ y)
    torch.testing.assert_close(model.net.learned_values()["slope"].detach(), ridge, rtol=0, atol=1e-6)


@pytest.mark.parametrize("particles", [1, 4])
def test_the_log_prior_of_points_is_counted_once(particles):
    torch.manual_seed(7)
    x, y = data()
    network = net()
    torch.manual_seed(0)
    plain = built(network, bayesian="last_layer", dataset_size=300)
    torch.manual_seed(0)
    penalised = built(network, bayesian="last_layer", others=priors.Normal(scale=0.7), dataset_size=300)
    guide = AutoHypernet(plain, example=(x, y), family="mean_field", conditional=None)
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    losses = []
    for model in (plain, penalised):
        torch.manual_seed(1)
        losses.append(elbo.loss(model, guide, x, y))
    normal = torch.distributions.Normal(0.0, 0.7)
    values = {name: value.detach() for name, value in penalised.net.learned_values().items()}
    expected = sum(float(normal.log_prob(values[name]).sum()) for name in ("0.weight", "0.bias", "1.bias"))
    expected += float(torch.distributions.Normal(1.0, 0.7).log_prob(values["1.weight"]).sum())
    assert losses[0] - losses[1] == pytest.approx(expected, abs=1e-2)
    assert float(penalised.points.log_prior().detach()) == pytest.approx(expected, abs=1e-4)


def test_the_log_prior_of_points_is_no_likelihood():
    torch.manual_seed(8)
    x, y = data()
    network = net()
    found = []
    for others in ("frozen", dist.Laplace(0.0, 0.01)):
        model = built(network, bayesian="last_layer", others=others)
        torch.manual_seed(0)
        guide = AutoHypernet(model, example=(x, y), family="mean_field", conditional=None)
        torch.manual_seed(1)
        found.append(fit(model, guide, (x, y), 1, progress=False))
    assert found[0].log_likelihood[0] == pytest.approx(found[1].log_likelihood[0], rel=1e-5)
    assert abs(found[0].losses[0] - found[1].losses[0]) > 100


@pytest.mark.parametrize(
    "options",
    [
        {"bayesian": "last_layer"},
        {"bayesian": ["*.weight", "!0.*"], "others": {"0.*": priors.Normal(scale=0.3), "1.*": "frozen"}},
        {"bayesian": Parts(include="3.*")},
        {"bayesian": nn.LayerNorm},
        {"bayesian": lambda name, record: name == "3.bias"},
    ],
)
def test_files_copies_and_pickles_are_equal_to_the_bit(options, tmp_path):
    torch.manual_seed(9)
    network, (x, y) = net(), data()
    model = built(network, **options)
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), 3, num_particles=2, progress=False)

    def prediction(model, guide):
        torch.manual_seed(0)
        return predict(model, guide, x, num_samples=7).mean

    expected = prediction(model, guide)
    save(tmp_path / "run", model=model, guide=guide)
    fresh = built(net(), **options)
    other = AutoHypernet(fresh, example=(x, y))
    load(tmp_path / "run", model=fresh, guide=other)
    assert torch.equal(prediction(fresh, other), expected)
    assert torch.equal(prediction(*load_posterior(tmp_path / "run", net())), expected)
    assert torch.equal(prediction(*copy.deepcopy((model, guide))), expected)
    if "lambda" not in repr(options["bayesian"]):
        assert torch.equal(prediction(*pickle.loads(pickle.dumps((model, guide)))), expected)


def test_a_fit_is_resumed_to_the_bit(tmp_path):
    x, y = data()
    network = net()

    def crash(step, history):
        if step == 5:
            raise ZeroDivisionError

    def run(file, *callbacks):
        torch.manual_seed(0)
        model = built(network, bayesian="last_layer")
        guide = AutoHypernet(model, example=(x, y))
        torch.manual_seed(1)
        fit(model, guide, (x, y), 8, num_particles=2, progress=False, checkpoint=file, every=2, callbacks=callbacks)
        return model

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "a", crash)
    resumed = run(tmp_path / "a")
    straight = run(tmp_path / "b")
    for name, value in straight.net.learned_values().items():
        assert torch.equal(resumed.net.learned_values()[name], value)


def test_an_update_with_points_is_refused():
    x, y = data()
    model = built(bayesian="last_layer")
    guide = AutoHypernet(model, example=(x, y))
    with pytest.raises(UsageError, match="are points, learned with the guide"):
        model.updated(guide)


def test_a_network_without_values_has_no_points():
    network = MLP(n_in=2, n_out=1, hidden_layers=(4,), verbose=False, no_weights=True)
    with pytest.raises(ArgumentError, match="keeps no values of its parameters"):
        built(network, bayesian="last_layer")


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "bayesian_parts.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "Bayesian 2 of 6 tensors, 17 of 113 numbers: ['3.weight', '3.bias']; learned ['0.weight'" in printed
    assert "['0.bias', '0.weight']" in printed
    assert "of the trunk before 3:" in printed
    assert names["same"].shape == names["fresh"].shape == (5,)


def test_rows_of_the_page_name_tests():
    check_rows("Parts", least=10)


def test_names_count_before_patterns_and_the_first_pattern_that_fits():
    """As in the mappings of priors; before, the entry of a name after a pattern had no effect."""
    kind = built(bayesian="last_layer", others={"0.*": priors.Normal(), "0.weight": "frozen", "*": "learned"})
    assert kind.net.frozen_names == ("0.weight",)
    assert "learned under a prior ['0.bias']" in repr(kind)
    with pytest.raises(ArgumentError, match=re.escape("others: '0.*' has no effect, as what comes before it")):
        built(bayesian="last_layer", others={"*": "learned", "0.*": "frozen"})


@pytest.mark.parametrize("prior", [priors.Horseshoe(), priors.Hierarchical()], ids=lambda p: type(p).__name__)
def test_points_have_no_prior_with_scales_that_are_inferred(prior):
    """Before, the scales were 1, without a word."""
    for others in (prior, {"0.*": prior}):
        with pytest.raises(ArgumentError, match="has scales that are inferred, and a point has none"):
            built(bayesian="last_layer", others=others)
