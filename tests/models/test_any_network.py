"""Networks of every kind as Bayesian networks: the same numbers as the plain module, vectorised and in a loop."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bayeshnet import (
    AutoHypernetNormal,
    BayesianModel,
    fit,
    likelihoods,
    load_posterior,
    predict,
    predict_summary,
    save,
)
from bayeshnet.mnets import batched
from tests.models.networks_brought import MULTIPLE, ROWS, B

TOLERANCE = 1e-10  # 1e-6 is asked for


def called(net, x, key):
    """The plain module for inputs in their form."""
    if key in ("inputs_list", "inputs_one_dict") or not isinstance(x, tuple | dict):
        return net(x)
    return net(**x) if isinstance(x, dict) else net(*x)


def brought(key):
    """A plain network, its inputs and the model, in float64."""
    torch.manual_seed(0)
    row = ROWS[key]
    net = row.build().double()
    x = row.inputs()
    x = batched.fresh(x)  # nothing that the network does to its inputs may be seen
    x = _double(x)
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.3), output=row.output, dataset_size=B)
    return row, net, x, model


def _double(x):
    if isinstance(x, torch.Tensor):
        return x.double() if x.is_floating_point() else x
    if isinstance(x, dict):
        return {name: _double(part) for name, part in x.items()}
    return type(x)(_double(part) for part in x) if isinstance(x, tuple | list) else x


def weights_of(model, net, num):
    """``num`` sets of weights by site: those of the plain network, and others near them."""
    own = dict(net.named_parameters())
    names = model.net.param_names
    return {name: torch.stack([own[name].detach() * (1.0 + 0.1 * i) for i in range(num)]) for name in names}


def with_weights(net, weights, i):
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for name, param in copied.named_parameters():
            param.copy_(weights[name][i])
    return copied


@pytest.mark.parametrize("how", ["vectorised", "looped"])
@pytest.mark.parametrize("key", list(ROWS))
def test_a_network_is_the_plain_module_for_each_sample_of_its_weights(key, how, monkeypatch):
    row, net, x, model = brought(key)
    attempts = []
    vmap = batched.vmap

    def watched(function, **options):
        def run(*args):
            attempts.append(how)
            if how == "looped":
                raise RuntimeError("only the loop is looked at")
            return vmap(function, **options)(*args)

        return run

    monkeypatch.setattr(batched, "vmap", watched)
    weights = weights_of(model, net, 3)
    with torch.no_grad():
        f, samples = model.evaluate(model.as_inputs(x), weights)
        for i in range(3):
            expected = row.pick(called(with_weights(net, weights, i), x, key))
            assert expected.shape[0] == B
            assert torch.allclose(f[i].reshape(expected.shape), expected, rtol=0.0, atol=TOLERANCE)
        one, _ = model.evaluate(model.as_inputs(x), weights_of(model, net, 1))
    assert samples == (3,)
    assert torch.allclose(one, f[0], rtol=0.0, atol=TOLERANCE)
    if model.net.as_chain() is None or row.output is not None:
        assert attempts, "neither way was tried"
        known = batched._KNOWN[model.net]
        assert list(known.values()) == [how == "vectorised" and row.vectorises]


def test_networks_in_evaluation_mode_are_the_plain_module_too():
    for key in ("batch_norm", "transformer_padding", "embedding", "output_dict"):
        row, net, x, _ = brought(key)
        net.eval()
        model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.3), output=row.output)
        model.eval()
        weights = weights_of(model, net, 2)
        with torch.no_grad():
            f, _ = model.conditional(x, weights)
            for i in range(2):
                expected = row.pick(called(with_weights(net, weights, i), x, key))
                assert torch.allclose(f[i].reshape(expected.shape), expected, rtol=0.0, atol=1e-10), key


class RowsOf(Dataset):
    """Rows one by one, as ``((u, v), y)`` or ``(u, v, y)`` or dicts, for the default collate."""

    def __init__(self, x, y, form):
        self.x, self.y, self.form = x, y, form

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        parts = tuple(part[i] for part in self.x)
        return {
            "nested": (parts, self.y[i]),
            "flat": (*parts, self.y[i]),
            "dict": {"x": parts, "y": self.y[i]},
        }[self.form]


def loader(x, y, form):
    # With a generator of its own it takes no random numbers of the fit.
    return DataLoader(RowsOf(x, y, form), batch_size=B, generator=torch.Generator())


def forms_of(x, y):
    """The same data as a tuple, a dict and loaders, each with what gives it to ``predict``."""
    return {
        "tuple": (x, y),
        "list inside": (list(x), y),
        "in places": (*x, y),
        "dict": {"x": x, "y": y},
        "nested loader": loader(x, y, "nested"),
        "flat loader": loader(x, y, "flat"),
        "dict loader": loader(x, y, "dict"),
    }


@functools.cache
def reference(key):
    _, _, x, model = brought(key)
    return x, torch.randn(B, dtype=torch.double), model


@pytest.mark.parametrize("form", list(forms_of((), torch.zeros(0))))
@pytest.mark.parametrize("key", MULTIPLE)
def test_several_inputs_are_fitted_and_predicted_from_every_form(key, form):
    x, y, model = reference(key)
    data = forms_of(x, y)
    losses, means = [], []
    for given in (data["tuple"], data[form]):
        torch.manual_seed(1)
        example = given if not isinstance(given, DataLoader) else next(iter(given))
        torch.manual_seed(1)
        guide = AutoHypernetNormal(model, example=example)
        history = fit(model, guide, given, steps=2, num_particles=2, progress=False)
        torch.manual_seed(2)
        inputs = list(x) if form == "list inside" else x
        means.append(predict(model, guide, inputs, 5, batch_size=4).mean)
        losses.append(torch.as_tensor(history.losses))
    assert torch.allclose(losses[0], losses[1], rtol=1e-10)
    assert torch.allclose(means[0], means[1], atol=1e-10)
    torch.manual_seed(3)
    draws = guide.sample_posterior(4)
    whole = predict_summary(model, draws, x, targets=y, generator=torch.Generator().manual_seed(0))
    if isinstance(data[form], DataLoader):
        batches = predict_summary(model, draws, data[form], targets=True, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(batches.mean, whole.mean, atol=1e-10)
        assert torch.allclose(batches.log_prob, whole.log_prob, atol=1e-10)


@pytest.mark.parametrize("key", ["inputs_list", "inputs_dict", "inputs_one_dict", "inputs_without_rows"])
def test_lists_dicts_and_arguments_without_rows_are_divided_with_their_rows(key):
    _, _, x, model = brought(key)
    y = torch.randn(B, dtype=torch.double)
    guide = AutoHypernetNormal(model, example=(x, y))
    fit(model, guide, (x, y), steps=2, batch_size=4, num_particles=2, progress=False, validation=(x, y))
    draws = guide.sample_posterior(3)
    together, divided = predict(model, draws, x), predict(model, draws, x, batch_size=2)
    assert torch.allclose(together.functions, divided.functions, rtol=0.0, atol=1e-12)
    whole = (x,) if isinstance(x, list) else x  # a list is taken for a list of batches
    summary = predict_summary(model, draws, whole, batch_size=2)
    assert torch.allclose(summary.mean, together.mean, atol=1e-12)


@pytest.mark.parametrize("form", ["tuple", "in places", "dict"])
def test_plain_pyro_takes_the_same_arguments(form):
    _, _, x, model = brought("inputs_tuple")
    y = torch.randn(B, dtype=torch.double)
    data = forms_of(x, y)[form]
    args, kwargs = ((), data) if isinstance(data, dict) else (data, {})
    guide = AutoHypernetNormal(model, example=data)
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO(num_particles=2, vectorize_particles=True))
    svi.evaluate_loss(*args, **kwargs)  # Pyro finds out how many plates there are
    torch.manual_seed(0)
    first = svi.evaluate_loss(*args, **kwargs)
    torch.manual_seed(0)
    assert first == pytest.approx(svi.evaluate_loss(x, y), rel=1e-12)
    inputs = {"x": x} if kwargs else args[:-1]
    drawn = Predictive(model, guide=guide, num_samples=3)
    found = drawn(**inputs) if kwargs else drawn(*inputs)
    assert found["obs"].shape == (3, B)


@pytest.mark.parametrize("key", ["lstm_packed", "transformer_padding", "inputs_dict", "inputs_one_dict"])
def test_a_posterior_over_a_network_with_several_inputs_is_loaded_without_data(key, tmp_path):
    row, _, x, model = brought(key)
    y = torch.randn(B, dtype=torch.double)
    guide = AutoHypernetNormal(model, example=(x, y))
    save(tmp_path / "run", model=model, guide=guide)
    loaded = load_posterior(tmp_path / "run", row.build().double())
    torch.manual_seed(1)
    first = predict(model, guide, x, 3).draws
    torch.manual_seed(1)
    assert torch.equal(predict(loaded.model, loaded.guide, x, 3).draws, first)


def test_inputs_by_the_names_of_the_network_are_taken():
    _, _, x, model = brought("inputs_tuple")
    y = torch.randn(B, dtype=torch.double)
    (), named = model.as_arguments((), {"u": x[0], "v": x[1], "y": y})
    assert list(named) == ["y", "x"]
    assert named["x"]["v"] is x[1]
    guide = AutoHypernetNormal(model, example={"u": x[0], "v": x[1], "y": y})
    draws = guide.sample_posterior(3)
    by_name, in_places = predict(model, draws, {"v": x[1], "u": x[0]}), predict(model, draws, x)
    assert torch.equal(by_name.functions, in_places.functions)
    assert "inputs: 2 (u, v), required by forward" in repr(model)


def test_a_network_with_an_optional_input_is_told_how_many_there_are():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x, mask=None):
            return self.layer(x if mask is None else x * mask)

    x, mask, y = torch.randn(B, 2), torch.ones(B, 2), torch.randn(B)
    model = BayesianModel(Masked(), likelihood=likelihoods.Normal(scale=0.3), inputs=2)
    assert "inputs: 2 (x, mask), as given" in repr(model)
    guide = AutoHypernetNormal(model, example=(x, mask, y))
    fit(model, guide, (x, mask, y), steps=1, num_particles=2, progress=False)
    other = BayesianModel(Masked(), likelihood=likelihoods.Normal(scale=0.3))
    with pytest.raises(ValueError, match=r"BayesianModel\(\.\.\., inputs=2\)"):
        AutoHypernetNormal(other, example=(x, mask, torch.zeros(B, dtype=torch.long)))
