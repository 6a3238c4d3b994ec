from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Size, nn

from bayeshnet import AutoHypernet, BayesianModel, fit, predict
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models import likelihoods
from bayeshnet.models.target_shapes import fitted_targets


def test_known_scale_and_precision_agree():
    f = torch.randn(4, 7, 2)
    by_scale = likelihoods.Normal(scale=0.5).conditional(f, {}, batch_dims=2)
    by_precision = likelihoods.Normal(precision=4.0).conditional(f, {}, batch_dims=2)
    y = torch.randn(7, 2)
    torch.testing.assert_close(by_scale.log_prob(y), by_precision.log_prob(y))
    assert by_scale.batch_shape == (4, 7)
    assert by_scale.event_shape == (2,)


@pytest.mark.parametrize("lead", [(), (5,), (5, 3)])
@pytest.mark.parametrize("event", [(), (2,)])
@pytest.mark.parametrize("extra", [(), (1,)])
def test_latent_scale_broadcasts_from_every_place_pyro_puts_it(lead, event, extra):
    """Vectorised particles give [P, 1, *event], a parallel Predictive [S, *event] or [S, 1]."""
    prior = dist.Gamma(6.0, 6.0).expand(event).to_event(len(event))
    likelihood = likelihoods.Normal(scale=prior)
    scale = torch.rand((*lead, *extra, *event)) + 0.5
    f = torch.randn(*lead, 7, *(event or (1,)))
    conditional = likelihood.conditional(f, {"scale": scale}, batch_dims=len(lead) + 1)
    assert conditional.batch_shape == (*lead, 7)
    expected = scale.reshape(*lead, 1, *(event or (1,))).expand(f.shape)
    torch.testing.assert_close(conditional.variance.sqrt().reshape(f.shape), expected)


@pytest.mark.parametrize("lead", [(), (5,), (5, 3)])
@pytest.mark.parametrize(("event", "outputs"), [((1,), ()), ((1,), (2,)), ((2,), (3, 2)), ((3, 1), (3, 2))])
def test_noise_of_length_1_or_of_the_last_dimension(lead, event, outputs):
    likelihood = likelihoods.Normal(scale=dist.Gamma(6.0, 6.0).expand(event).to_event(len(event)))
    scale = torch.rand((*lead, 1, *event)) + 0.5
    f = torch.randn(*lead, 7, *outputs)
    conditional = likelihood.conditional(f, {"scale": scale}, batch_dims=len(lead) + 1)
    assert conditional.batch_shape == (*lead, 7)
    inner = event[len(event) - len(outputs) :] if outputs else ()
    padded = scale.reshape(*lead, 1, *(1,) * (len(outputs) - len(inner)), *inner)
    torch.testing.assert_close(conditional.variance.sqrt(), padded.expand(f.shape))
    if event == (1,):
        known = likelihoods.Normal(scale=torch.tensor([0.5])).conditional(f, {}, batch_dims=len(lead) + 1)
        torch.testing.assert_close(known.variance, torch.full(f.shape, 0.25))


@pytest.mark.parametrize("argument", ["scale", "precision"])
@pytest.mark.parametrize("kind", ["known", "learned", "latent"])
@pytest.mark.parametrize(("outputs", "num"), [((), 1), ((1,), 1), ((2,), 2), ((3, 2), 2)])
@pytest.mark.parametrize("length", [3, 7])
def test_noise_of_another_length_than_the_outputs(argument, kind, outputs, num, length):
    """One for each of the 7 rows would count every row 7 times, or be the noise of whatever row comes at its place."""
    value = torch.full((length,), 0.5)
    noise = dist.Gamma(6.0, value).to_event(1) if kind == "latent" else value
    likelihood = likelihoods.Normal(**{argument: noise}, learn=kind == "learned")
    what = rf"{argument}: .*\({length},\).* {num} outputs? .*{r'expand' if kind == 'latent' else 'pass one number'}"
    with pytest.raises(ArgumentError, match=what):
        likelihood.conditional(torch.zeros(7, *outputs), {argument: value}, batch_dims=1)


def test_a_noise_prior_needs_an_event_dimension():
    for size, fix in (((3,), 1), ((1,), 1), ((2, 3), 2)):
        with pytest.raises(ArgumentError, match=rf"precision: .* batch shape .*; call \.to_event\({fix}\)"):
            likelihoods.Normal(precision=dist.LogNormal(torch.zeros(size), 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_noise_follows_the_dtype_of_the_outputs(dtype, given):
    f = torch.zeros(7, 2, dtype=dtype)
    known = torch.tensor([0.5, 2.0], dtype=given)
    for conditional in (
        likelihoods.Normal(scale=known).conditional(f, {}, batch_dims=1),
        likelihoods.Normal(precision=known, learn=True).conditional(f, {}, batch_dims=1),
        likelihoods.Normal(scale=dist.Gamma(6.0, known).to_event(1)).conditional(f, {"scale": known}, batch_dims=1),
    ):
        assert conditional.variance.dtype == dtype
        assert conditional.log_prob(f).dtype == dtype
    # outputs under autocast have fewer bits than the network's weights
    half = likelihoods.Normal(scale=known).conditional(f.bfloat16(), {}, batch_dims=1)
    assert half.variance.dtype == given


def test_learned_scale_is_a_parameter_and_known_is_a_buffer():
    learned = likelihoods.Normal(scale=0.5, learn=True)
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"]
    known = likelihoods.Normal(scale=torch.tensor([0.1, 0.2]))
    assert not list(known.parameters())
    assert list(known.state_dict()) == ["log_scale"]
    assert "0.5" in repr(learned)


def test_errors():
    with pytest.raises(ArgumentError, match="scale, precision: both"):
        likelihoods.Normal(scale=1.0, precision=1.0)
    with pytest.raises(ArgumentError, match="scale, precision: neither"):
        likelihoods.Normal()
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="scale: is"):
            likelihoods.Normal(scale=bad)
    with pytest.raises(ArgumentTypeError, match="scale: is a str"):
        likelihoods.Normal(scale="learned")
    with pytest.raises(ArgumentError, match="learn: scale has a prior"):
        likelihoods.Normal(scale=dist.Gamma(1.0, 1.0), learn=True)
    with pytest.raises(ArgumentError, match="not restricted to positive"):
        likelihoods.Normal(scale=dist.Normal(0.0, 1.0))
    with pytest.raises(ArgumentTypeError, match=r"y: has dtype torch.int64"):
        likelihoods.Normal(scale=1.0).check_target(torch.zeros(3, dtype=torch.long), torch.Size((1,)))
    with pytest.raises(ArgumentTypeError, match=r"try y.long\(\)"):
        likelihoods.Categorical().check_target(torch.zeros(3), torch.Size((4,)))
    with pytest.raises(ArgumentError, match=r"y: holds labels 0..4; the network gives 4 logits"):
        likelihoods.Categorical().check_target(torch.arange(5), torch.Size((4,)))
    with pytest.raises(ArgumentError, match="at least 2 logits"):
        likelihoods.Categorical().target_event(torch.Size((1,)))


@pytest.mark.parametrize(
    "prior", [dist.HalfNormal(1.0), dist.LogNormal(0.0, 1.0), dist.HalfCauchy(1.0), dist.Uniform(0.1, 2.0)]
)
def test_positive_priors_are_accepted(prior):
    assert likelihoods.Normal(scale=prior).priors() == {"scale": prior}


def test_categorical_over_more_than_one_position():
    conditional = likelihoods.Categorical().conditional(torch.zeros(4, 7, 5, 3), {}, batch_dims=2)
    assert conditional.batch_shape == (4, 7)
    assert conditional.event_shape == (5,)


def conv_model(num_classes, size, **options):
    net = nn.Conv2d(1, num_classes, 1)
    return BayesianModel(net, likelihood=likelihoods.Categorical(**options)), torch.randn(5, 1, size, size)


def test_classes_come_last_and_where_the_shape_fits_both_ways_it_has_to_be_said():
    """Before: logits [B, C, H, W] with C = H = W were trained on with W as the classes, without a word."""
    model, x = conv_model(3, 3)
    y = torch.randint(3, (5, 3, 3))
    with pytest.raises(
        ArgumentError, match=r"shape \(3, 3, 3\), so that its classes may be in the first or in the last"
    ):
        model(x, y)
    with pytest.raises(ArgumentError, match="say which"):
        AutoHypernet(model, example=(x, y))
    last, _ = conv_model(3, 3, class_dim=-1)
    assert torch.equal(last(x, y), y)
    # Unambiguous, and wrong: classes first with C != H.
    model, x = conv_model(4, 3)
    with pytest.raises(ArgumentError, match=r"asks for \(5, 4, 3\). Classes come last here; .*class_dim=1"):
        model(x, torch.randint(4, (5, 3, 3)))
    model, x = conv_model(4, 1)
    with pytest.raises(
        ArgumentError, match=r"at least 2 logits .*\(4, 1, 1\). For outputs \[B, C, ...\] pass class_dim=1"
    ):
        model(x, torch.randint(4, (5, 1, 1)))


@pytest.mark.parametrize("class_dim", [1, -3])
@pytest.mark.parametrize("size", [3, 4])
def test_classes_in_the_second_dimension(class_dim, size):
    torch.manual_seed(0)
    model, x = conv_model(3, size, class_dim=class_dim)
    y = torch.randint(3, (5, size, size))
    weights = {name: torch.randn(shape) for name, shape in model.latent_shapes.items()}
    conditioned = poutine.trace(poutine.condition(model, data=weights)).get_trace(x, y)
    f = nn.functional.conv2d(x, weights["weight"], weights["bias"])
    expected = -nn.functional.cross_entropy(f, y, reduction="none").sum((1, 2))
    obs = conditioned.nodes["obs"]
    torch.testing.assert_close(obs["fn"].log_prob(obs["value"]), expected)
    draws = {name: value.unsqueeze(0) for name, value in weights.items()}
    pred = predict(model, draws, x)
    torch.testing.assert_close(pred.probs, f.softmax(1).movedim(1, -1))
    torch.testing.assert_close(pred.log_prob(y), expected)


def test_class_dim_fits_and_predicts():
    torch.manual_seed(0)
    model, x = conv_model(3, 3, class_dim=1)
    y = torch.randint(3, (5, 3, 3))
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), steps=5, num_particles=3, progress=False)
    assert predict(model, guide, x, 4).probs.shape == (5, 3, 3, 3)
    assert "class_dim=1" in repr(model)


def test_class_dim_errors():
    for bad, error in (
        (0, ArgumentError),
        (1.0, ArgumentTypeError),
        (True, ArgumentTypeError),
        ("first", ArgumentTypeError),
    ):
        with pytest.raises(error, match="class_dim: is"):
            likelihoods.Categorical(class_dim=bad)
    model = BayesianModel(nn.Linear(3, 2), likelihood=likelihoods.Categorical(class_dim=2))
    with pytest.raises(
        ArgumentError, match=r"class_dim: is 2, but the network's output \(4, 2\) has no such dimension"
    ):
        model(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        (torch.tensor([0, 1, 5]), ArgumentError, r"y: holds labels 0..5; the network gives 3 logits.* 0..2"),
        (torch.tensor([0, 1, -100]), ArgumentError, "holds labels -100..1.*Labels such as -100 do not mean 'ignored'"),
        (torch.tensor([0.0, 1.0, 2.0]), ArgumentTypeError, r"needs integer labels 0..C-1, try y.long\(\)"),
        (torch.eye(3), ArgumentTypeError, r"y.argmax\(-1\) if these are one-hot"),
        (torch.eye(3).long(), ArgumentError, r"asks for \(3,\). For one-hot vectors pass y.argmax\(-1\)"),
        (torch.zeros(3, 1).long(), ArgumentError, r"asks for \(3,\). Try y.squeeze\(-1\)"),
    ],
)
def test_labels_that_do_not_exist(y, error, match, validate):
    """Without Pyro's validation, as in all but the first step of a fit, before: index 5 is out of bounds."""
    if error is ArgumentError and y.dim() == 1 and not validate:
        error = ValueError  # Pyro wraps what a density raises, with its message
    model = BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Categorical())
    with pyro.validation_enabled(validate), pytest.raises(error, match=match):
        poutine.trace(model).get_trace(torch.randn(3, 2), y).compute_log_prob()


@pytest.mark.parametrize(
    ("scale", "error", "match"),
    [
        (1e-60, ArgumentError, "scale: is 1e-60, which is 0 in torch.float32"),
        (1e300, ArgumentError, r"scale: is 1e\+300, which is inf"),
        (torch.tensor(1e-60, dtype=torch.float64), ArgumentError, "the standard deviation is 0.0 in torch.float32"),
        (torch.tensor([True]), ArgumentTypeError, "scale: is a tensor of torch.bool"),
        (torch.distributions.Gamma(1.0, 1.0), ArgumentTypeError, "its prior is a Gamma of torch.distributions"),
        (dist.Poisson(1.0), ArgumentError, "or discrete"),
    ],
)
def test_noise_that_is_no_number_of_the_network(scale, error, match):
    with pytest.raises(error, match=match):
        BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Normal(scale=scale))


def test_targets_fit_outputs_or_the_message_says_what_would():
    normal, labels = likelihoods.Normal(scale=0.1), likelihoods.Categorical()
    assert fitted_targets(normal, torch.zeros(7), Size([7, 1]), None).shape == (7,)
    assert fitted_targets(normal, torch.zeros(7, 1), Size([7, 1]), (1,)).shape == (7, 1)
    assert fitted_targets(labels, torch.zeros(7).long(), Size([7, 3]), None).shape == (7,)
    with pytest.raises(ArgumentTypeError, match=r"y: is a list; pass a tensor"):
        fitted_targets(normal, [0.0], Size([1, 1]), None)
    with pytest.raises(ArgumentError, match=r"y: has shape \(6,\); .* \(7, 1\) asks for \(7,\)\."):
        fitted_targets(normal, torch.zeros(6), Size([7, 1]), None)
    with pytest.raises(ArgumentError, match=r"one-hot vectors pass y.argmax"):
        fitted_targets(labels, torch.zeros(7, 3).long(), Size([7, 3]), None)


def test_draws_are_given_by_the_names_of_their_sites():
    f, scale = torch.zeros(4, 7, 1), torch.tensor([0.1, 0.2, 0.3, 0.4])
    latent = likelihoods.Normal(scale=dist.Gamma(6.0, 6.0))
    found = latent.conditional_of(f, {"likelihood.scale": scale, "weights": torch.zeros(4, 2)})
    assert found.batch_shape == (4, 7)
    torch.testing.assert_close(found.stddev[:, 0, 0], scale)
