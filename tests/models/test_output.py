"""What is observed of that which a network returns."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import torch
from torch import nn

from bayeshnet import (
    AutoHypernet,
    BayesianModel,
    fit,
    freeze,
    likelihoods,
    load_posterior,
    predict,
    sample_networks,
    save,
    start_from,
)
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError
from bayeshnet.mnets import batched_forward
from tests.models.networks_brought import Made, Returns, as_tuple, sum_of_squares


class Named(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


X, Y = torch.linspace(-1.0, 1.0, 24).reshape(8, 3), torch.linspace(0.0, 1.0, 8)


def model(how=dict, output="logits"):
    torch.manual_seed(0)
    return BayesianModel(Returns(how), likelihood=likelihoods.Normal(scale=0.3), output=output)


def test_a_part_is_picked_and_said():
    draws = {name: torch.randn(5, *shape) for name, shape in model().latent_shapes.items()}
    expected = model().conditional(X, draws)[0]
    for how, output in ((as_tuple, 1), (as_tuple, -1), (Made, "logits"), (Named, "logits"), (Named, 0)):
        assert torch.equal(model(how, output).conditional(X, draws)[0], expected)
    assert torch.equal(model(dict, lambda out: out["logits"] + 1.0).conditional(X, draws)[0], expected + 1.0)
    assert "output: 'logits'" in repr(model())
    assert "output: sum_of_squares" in repr(model(dict, sum_of_squares))


def test_what_is_no_output_is_refused_with_the_fix():
    for how, output, message in (
        (
            dict,
            None,
            r"net: returns a dict with the keys \['logits', 'hidden'\]; .*\.\.\.\), the key .*'logits'",
        ),
        (as_tuple, None, r"net: returns a tuple of 2; .* output=\.\.\.\), the place of the output"),
        (Made, None, r"net: returns a Made with the attributes \['logits', 'hidden'\]; .* output="),
    ):
        with pytest.raises(ArgumentTypeError, match=message):
            model(how, output)(X)
    for how, output, message in (
        (dict, "logit", "output: is 'logit', and the network returns a dict with the keys"),
        (as_tuple, 2, "output: is 2, and the network returns a tuple of 2"),
        (Made, "x", "output: is 'x', and the network returns a Made with the attributes"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(message)):
            model(how, output)(X)
    with pytest.raises(ArgumentTypeError, match="output: is a list"):
        model(dict, ["logits"])
    with pytest.raises(ArgumentTypeError, match="net: returns a dict"):
        model(dict, lambda out: out)(X)


@pytest.mark.parametrize("output", ["logits", sum_of_squares])
def test_a_fit_its_file_and_sampled_networks(output, tmp_path):
    made = model(dict, output)
    guide = AutoHypernet(made, example=(X, Y))
    # The last layer is drawn conditionally where its output is what is observed.
    assert (guide.inducing is not None) == (output == "logits")
    fit(made, guide, (X, Y), steps=2, num_particles=2, progress=False)
    save(tmp_path / "run", model=made, guide=guide)
    if output == "logits":
        loaded = load_posterior(tmp_path / "run", Returns(dict))
        assert loaded.model.output == "logits"
    else:
        with pytest.raises(CheckpointError, match=r"output: that of the model cannot be made .* output=\.\.\.\)"):
            load_posterior(tmp_path / "run", Returns(dict))
        with pytest.raises(CheckpointError, match="output"):
            load_posterior(tmp_path / "run", Returns(dict), output="logits")
        loaded = load_posterior(tmp_path / "run", Returns(dict), output=sum_of_squares)
    torch.manual_seed(1)
    first = predict(made, guide, X, 4).draws
    torch.manual_seed(1)
    assert torch.equal(predict(loaded.model, loaded.guide, X, 4).draws, first)
    draws = guide.sample_posterior(2)
    functions = predict(made, draws, X).functions
    whole = [network(X) for network in sample_networks(draws, 2, made)]
    assert [list(out) for out in whole] == [["logits", "hidden"]] * 2  # plain networks return what the plain one does
    picked = [out["logits"] if output == "logits" else sum_of_squares(out) for out in whole]
    assert torch.allclose(torch.stack(picked).squeeze(-1), functions, atol=1e-6)
    assert torch.allclose(freeze(draws, 2, made, output="network")(X), functions, atol=1e-6)


def test_a_guide_starts_from_a_network_with_such_an_output():
    made, plain = model(), Returns(dict)
    guide = AutoHypernet(made, example=(X, Y))
    start_from(guide, plain)
    with torch.no_grad():
        expected = plain(X)["logits"].squeeze(-1)
    near = predict(made, guide, X, 200).functions.mean(0)
    far = predict(made, AutoHypernet(made, example=(X, Y)), X, 200).functions.mean(0)
    assert float((near - expected).abs().mean()) < 0.5 * float((far - expected).abs().mean())


def test_samples_of_dataclasses_are_put_together_and_of_others_refused():
    net = Returns(Made)
    weights = torch.randn(3, sum(p.numel() for p in net.parameters()))
    found = batched_forward(net, weights, X)
    assert isinstance(found, Made)
    assert found.logits.shape == (3, 8, 1)
    assert torch.equal(found.logits[1], batched_forward(Returns(dict), weights, X)["logits"][1])

    class Own:
        def __init__(self, logits, hidden):
            self.logits, self.hidden = logits, hidden

    with pytest.raises(ArgumentTypeError, match="net: returns an Own, and those of several samples"):
        batched_forward(Returns(Own), weights, X)
    assert torch.equal(model(Own).evaluate(X, dict(_split(net, weights)))[0], found.logits)


def _split(net, weights):
    parts = weights.split([p.numel() for p in net.parameters()], dim=1)
    return [(name, w.reshape(3, *p.shape)) for (name, p), w in zip(net.named_parameters(), parts, strict=True)]


def test_an_lstm_as_it_is():
    class OfSteps(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 1, batch_first=True)

        def forward(self, x):
            return self.lstm(x)

    made = BayesianModel(OfSteps(), likelihood=likelihoods.Normal(scale=0.3), output=lambda out: out[0][:, -1])
    assert made(torch.randn(4, 5, 3)).shape == (4,)
