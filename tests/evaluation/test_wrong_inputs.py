"""Entry points times bad inputs: each gets a sentence of this package, none a raw error of torch or Pyro."""

from __future__ import annotations

import math
import re

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_median
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from bayeshnet import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    diagnose,
    fit,
    importance_sample,
    likelihoods,
    log_evidence,
    predict,
    start_from,
)
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError, NonFiniteLossError, UsageError
from bayeshnet.families import Hypernet
from bayeshnet.mnets import batched_forward

X, Y = torch.linspace(-1.0, 1.0, 24).reshape(8, 3), torch.linspace(-1.0, 1.0, 8)


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def problem():
    torch.manual_seed(0)
    model = BayesianModel(net(), likelihood=likelihoods.Normal(scale=0.5))
    return model, AutoHypernet(model, example=(X, Y))


MODEL, GUIDE = problem()

ENTRIES = {
    "call": MODEL,
    "prior": lambda x, y: MODEL(x),
    "fit": lambda x, y: fit(MODEL, AutoHypernetDelta(MODEL, example=(X, Y)), (x, y), steps=2, progress=False),
    "fit, loader": lambda x, y: fit(MODEL, AutoNormal(MODEL), [(x, y)], steps=2, progress=False),
    "predict": lambda x, y: predict(MODEL, GUIDE, x, 4),
    "predict, parts": lambda x, y: predict(MODEL, GUIDE, x, 4, batch_size=3),
    "AutoHypernet": lambda x, y: AutoHypernet(MODEL, example=(x, y)),
    "AutoHypernetNormal": lambda x, y: AutoHypernetNormal(MODEL, example={"x": x, "y": y}),
    "importance_sample": lambda x, y: importance_sample(MODEL, GUIDE, (x, y), 4),
    "log_evidence": lambda x, y: log_evidence(MODEL, GUIDE, (x, y), 4),
    "diagnose": lambda x, y: diagnose(MODEL, GUIDE, (x, y), num_samples=100, thorough=False),
    "batched_forward": lambda x, y: batched_forward(net(), torch.zeros(5, 21), x),
}
# What is given for x, and what is said: of its type, or of its value.
INPUTS = {
    "integers": (X.long(), ArgumentTypeError, "x: has dtype torch.int64, the network's Linear '0' takes torch.float32"),
    "bools": (X > 0, ArgumentTypeError, "x: has dtype torch.bool, the network's Linear '0' takes torch.float32"),
    "complex": (X.cfloat(), ArgumentTypeError, "x: has dtype torch.complex64"),
    "float64": (X.double(), ArgumentTypeError, "x: has dtype torch.float64"),
    "list": (X.tolist(), ArgumentTypeError, "x: is a list"),
    "str": ("x", ArgumentTypeError, "x: is a str"),
    "none": (None, ArgumentTypeError, "x: is a NoneType"),
    "array": (X.numpy().astype(object), ArgumentTypeError, "x: is a ndarray"),
    "columns": (
        torch.zeros(8, 5),
        ArgumentError,
        "x: has shape [8, 5]; the network's Linear '0' takes 3 columns, not 5",
    ),
    "two inputs": (
        (X, X),
        ArgumentTypeError,
        "x: is a tuple of 2, taken for the arguments of the network, but Sequent",
    ),
    "sparse": (X.to_sparse(), ArgumentTypeError, "x: is a tensor of layout torch.sparse_coo"),
    "number": (torch.tensor(1.0), ArgumentError, "x: "),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_inputs(entry, kind):
    x, error, message = INPUTS[kind]
    with pytest.raises(error) as caught:
        ENTRIES[entry](x, Y)
    assert str(caught.value).startswith(message.split(":")[0])
    # predict and arrays are looked at before the network is; the rest is the same sentence everywhere
    assert message in str(caught.value) or entry.startswith("predict")


def test_what_torch_said_is_chained():
    with pytest.raises(ArgumentTypeError) as caught:
        MODEL(X.long(), Y)
    assert type(caught.value.__cause__) is RuntimeError
    assert "mat1 and mat2 must have the same dtype" in str(caught.value.__cause__)


TAKES = "the model takes x and y, and weight, noise and exposure of the rows. Pass"
DATA = {
    "surplus parts": (
        (X, Y, torch.arange(8)),
        f"has 3 parts, the third one torch.int64 [8] and no weight of each row, floating-point [B]; {TAKES} a tuple",
    ),
    "surplus key": ({"x": X, "y": Y, "index": Y}, f"has the keys ['x', 'y', 'index']; {TAKES} {{'x': ..., 'y': ...}}"),
    "wrong keys": ({"inputs": X, "labels": Y}, f"has the keys ['inputs', 'labels']; {TAKES} {{'x': ..., 'y': ...}}"),
    "numbers as keys": ({0: X, 1: Y}, "has the key 0, an int"),
    "no targets": ((X,), "has no targets"),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("data", lambda d: fit(MODEL, GUIDE, d, steps=2, progress=False)),
        ("data", lambda d: fit(MODEL, AutoNormal(MODEL), [d], steps=2, progress=False)),
        ("example", lambda d: AutoHypernet(MODEL, example=d)),
        ("data", lambda d: importance_sample(MODEL, GUIDE, d, 4)),
        ("data", lambda d: diagnose(MODEL, GUIDE, d, num_samples=100, thorough=False)),
    ],
)
def test_data(argument, call, kind):
    data, message = DATA[kind]
    with pytest.raises(BayeshnetError, match="^" + re.escape(f"{argument}: {message}")):
        call(data)


def test_a_loader_with_surplus_parts():
    loader = DataLoader(TensorDataset(X, Y, torch.arange(8)), batch_size=8)
    with pytest.raises(ArgumentError, match="data: has 3 parts"):
        fit(MODEL, GUIDE, loader, steps=2, progress=False)


@pytest.mark.filterwarnings("ignore:The third part:bayeshnet.errors.RowDataWarning")
def test_a_third_part_that_cannot_be_weights():
    for call in (
        lambda data: fit(MODEL, GUIDE, [data], steps=2, progress=False),
        lambda data: importance_sample(MODEL, GUIDE, data, 4),
    ):
        with pytest.raises(ArgumentError, match="^weight: 4 of 8 entries are no finite numbers, zero or more"):
            call((X, Y, Y))


@pytest.mark.parametrize("validate", [True, False])
def test_nan(validate):
    """Before: Pyro's "constraint Real()", and NaN predictions where its validation is off."""
    x, y = X.clone(), Y.clone()
    x[2, 1] = y[3] = math.nan
    with pyro.validation_enabled(validate):
        with pytest.raises(ArgumentError, match=r"x: 1 of 24 entries are NaN or infinite, .* \(rows \[2\]\)"):
            predict(MODEL, GUIDE, x, 4)
        draws = GUIDE.sample_posterior(4)
        draws["0.weight"][1, 0, 0] = math.nan
        with pytest.raises(
            ArgumentError, match=r"guide: gives draws that are NaN or infinite at the sites \['0.weight'\]"
        ):
            predict(MODEL, draws, X)
        assert predict(MODEL, GUIDE, X, 4).mean.shape == (8,)
        with pytest.raises(ArgumentError, match="y: 1 of 8 entries are NaN"):
            predict(MODEL, GUIDE, X, 4).log_prob(y)
        for data in ((x, Y), (X, y)):
            with pytest.raises(
                BayeshnetError, match=r"data: the model fails, from NaN in data\[.\]|Check the data for NaN"
            ):
                importance_sample(MODEL, GUIDE, data, 4)


def test_networks_that_make_nan_of_finite_inputs():
    class Root(nn.Linear):
        def forward(self, input):  # noqa: A002
            return super().forward(input).sqrt() * math.nan

    model = BayesianModel(Root(3, 1), likelihood=likelihoods.Normal(scale=0.5))
    draws = {name: torch.zeros(4, *shape) for name, shape in model.latent_shapes.items()}
    with pytest.raises(ArgumentError, match="net: makes NaN .* of finite inputs"):
        predict(model, draws, X)


@pytest.mark.parametrize("what", [lambda f: f.long(), lambda f: f.cfloat(), lambda f: f > 0])
def test_networks_that_return_no_real_numbers(what):
    """Before: silently a Normal around integers."""

    class Odd(nn.Linear):
        def forward(self, input):  # noqa: A002
            return what(super().forward(input))

    with pytest.raises(ArgumentTypeError, match="net: returns a tensor of torch.(int64|complex64|bool)"):
        BayesianModel(Odd(3, 1), likelihood=likelihoods.Normal(scale=0.5))(X, Y)


class WithParameter(nn.Linear):
    def __init__(self, value):
        super().__init__(3, 1)
        self.more = nn.Parameter(value)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.zeros(2, dtype=torch.complex64), "'more' has dtype torch.complex64"),
        (torch.zeros(2, dtype=torch.float64), "parameters have several dtypes .*'more' has torch.float64"),
        (torch.eye(2).to_sparse(), "'more' is a tensor of layout torch.sparse_coo"),
        (torch.zeros(2, device="meta"), "'more' is on the meta device"),
    ],
)
def test_parameters_that_cannot_be_drawn(value, match):
    with pytest.raises(ArgumentTypeError, match=f"net: its .*{match}"):
        BayesianModel(WithParameter(value), likelihood=likelihoods.Normal(scale=0.5))


def test_integers_are_right_for_an_embedding():
    model = BayesianModel(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 1)), likelihood=likelihoods.Normal(scale=0.5))
    x = torch.arange(8) % 5
    assert model(x, Y).shape == (8,)
    for bad, error, match in (
        (
            x.float(),
            ArgumentTypeError,
            r"x: has dtype torch.float32, the network's Embedding '0' looks up whole numbers 0..4",
        ),
        (x + 3, ArgumentError, r"x: holds the numbers 3..7, the network's Embedding '0' looks up 0..4"),
        (x - 3, ArgumentError, r"x: holds the numbers -3..1"),
    ):
        with pytest.raises(error, match=match):
            model(bad, Y)


def test_inference_mode():
    """Before: a guide that could never be trained, and the raw "Inference tensors cannot be saved for backward"."""
    with torch.inference_mode():
        x = X.clone()
        for make in (
            lambda: BayesianModel(net(), likelihood=likelihoods.Normal(scale=0.5)),
            lambda: AutoHypernet(MODEL, example=(X, Y)),
            lambda: AutoHypernetNormal(MODEL, example=(X, Y)),
            lambda: AutoHypernetDelta(MODEL, example=(X, Y)),
        ):
            with pytest.raises(UsageError, match="is built under torch.inference_mode"):
                make()
        assert predict(MODEL, GUIDE, X, 4).mean.shape == (8,)  # that is what the mode is for
    with pytest.raises(ArgumentTypeError, match=r"x: was made under torch.inference_mode.* x.clone"):
        fit(MODEL, GUIDE, (x, Y), steps=2, progress=False)


@pytest.mark.parametrize("make", [AutoHypernet, AutoHypernetNormal, AutoHypernetDelta])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"init_loc_fn": 3}, ArgumentTypeError, "init_loc_fn: is an int; pass a function from a site to its value"),
        ({"init_loc_fn": torch.zeros(21)}, ArgumentTypeError, "init_loc_fn: is a Tensor"),
        ({"init_loc_fn": lambda: None}, ArgumentTypeError, r"init_loc_fn: the function takes \(\), but is called"),
        ({"init_loc_fn": lambda site: 3.0}, ArgumentTypeError, "init_loc_fn: gives a float for the site '0.weight'"),
        ({"init_loc_fn": lambda site: torch.zeros(7)}, ArgumentError, r"of shape \(7,\) for the site '0.weight'"),
        (
            {"init_loc_fn": lambda site: torch.full(site["fn"].shape(), math.nan)},
            ArgumentError,
            "gives values for the site '0.weight' that are NaN",
        ),
        ({"whiten": "no"}, ArgumentTypeError, "whiten: is 'no', a str; pass True or False"),
    ],
)
def test_options_of_guides(make, options, error, match):
    with pytest.raises(error, match=match):
        make(MODEL, example=(X, Y), **options)


def test_starts_that_are_right_still_are():
    torch.manual_seed(0)
    wrapped = AutoHypernet(MODEL, example=(X, Y), conditional=None, init_loc_fn=init_to_median)
    assert bool(torch.isfinite(wrapped.loc).all())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: AutoHypernet(MODEL, example=(X, Y), family=Hypernet(noise_dim="a")),
            ArgumentError,
            "noise_dim: is 'a'",
        ),
        (lambda: AutoHypernet(MODEL, example=(X, Y), init_scale=1e300), ArgumentError, "init_scale: is 1e"),
        (lambda: AutoHypernet(MODEL, example=(X, Y), init_scale=True), ArgumentTypeError, "init_scale: is True"),
        (lambda: AutoHypernet(MODEL, example=(X, Y), hnet=nn.Linear(2, 2)), ArgumentTypeError, "hnet: is a Linear"),
        (
            lambda: AutoHypernetDelta(MODEL, example=(X, Y), hnet=nn.Linear(2, 2)),
            ArgumentTypeError,
            "hnet: is a Linear",
        ),
        (lambda: AutoHypernet(GUIDE, example=(X, Y)), ArgumentTypeError, r"model: is a guide \(AutoHypernet\)"),
        (lambda: AutoHypernet(net(), example=(X, Y)), ArgumentTypeError, "example: are no .*BayesianModel"),
        (lambda: AutoHypernet(lambda y: None, example=(X, Y)), ArgumentTypeError, r"model, which takes \(y\)"),
        (lambda: predict(MODEL, GUIDE, X, Y), ArgumentTypeError, "num_samples: is a tensor; pass a number: predict"),
        (
            lambda: predict(MODEL, GUIDE, (X, Y), 4),
            ArgumentTypeError,
            "x: is a tuple of 2.*inputs alone, without targets",
        ),
        (lambda: predict(MODEL, GUIDE, X, 0), ArgumentError, "num_samples: is 0"),
        (lambda: predict(MODEL, GUIDE, X, -1), ArgumentError, "num_samples: is -1"),
        (lambda: predict(MODEL, GUIDE, X, 2.5), ArgumentTypeError, "num_samples: is 2.5"),
        (lambda: predict(MODEL, GUIDE, X, True), ArgumentTypeError, "num_samples: is True"),
        (lambda: predict(MODEL, GUIDE, X, 4, parallel="no"), ArgumentTypeError, "parallel: is 'no'"),
        (lambda: predict(GUIDE, MODEL, X), ArgumentTypeError, "model: is an AutoHypernet"),
        (lambda: predict(MODEL, MODEL, X), ArgumentTypeError, "guide: is a model"),
        (lambda: predict(MODEL, AutoHypernet, X), ArgumentTypeError, "guide: is the class AutoHypernet"),
        (lambda: predict(MODEL, GUIDE, X[0], 4), ArgumentError, r"x: has shape \(3,\).*x.unsqueeze\(0\)"),
        (lambda: predict(MODEL, GUIDE, X.to("meta"), 4), ArgumentTypeError, "x: is on the meta device"),
        (
            lambda: predict(MODEL, {k: v.double() for k, v in GUIDE.sample_posterior(4).items()}, X),
            ArgumentTypeError,
            "draws: those of '0.weight' have dtype torch.float64, the network's weights torch.float32",
        ),
        (lambda: predict(MODEL, GUIDE, X, 4).interval("0.9"), ArgumentTypeError, "level: is '0.9'"),
        (lambda: predict(MODEL, GUIDE, X, 4).log_prob(Y.tolist()), ArgumentTypeError, "y: is a list"),
        (lambda: predict(MODEL, GUIDE, X, 4).log_prob(Y > 0), ArgumentTypeError, "y: has dtype torch.bool"),
        (lambda: MODEL(X[:0]), ArgumentError, "x: has no rows"),
        (lambda: importance_sample(MODEL, GUIDE, (X[:0], Y[:0]), 4), ArgumentError, "x: has no rows"),
        (lambda: GUIDE.median(num_samples=0), ArgumentError, "num_samples: is 0"),
        (lambda: GUIDE.quantiles([math.nan]), ArgumentError, "quantiles: is"),
        (lambda: GUIDE.quantiles("a"), ArgumentTypeError, "quantiles: is 'a'"),
        (lambda: GUIDE.diagnose(num_samples=-1), ArgumentError, "num_samples: is -1"),
        (lambda: diagnose(MODEL, GUIDE, (X, Y), num_samples="a"), ArgumentTypeError, "num_samples: is 'a'"),
        (
            lambda: start_from(GUIDE, {k: torch.zeros(v).long() for k, v in MODEL.latent_shapes.items()}),
            ArgumentTypeError,
            "source: '0.weight' has dtype torch.int64",
        ),
        (lambda: start_from(GUIDE, net().to("meta")), ArgumentTypeError, "source: '0.weight' is on the meta device"),
        (lambda: start_from(GUIDE, nn.Linear), ArgumentTypeError, "source: is a type"),
        (
            lambda: start_from(
                GUIDE, {k: torch.full(v, 1e300, dtype=torch.float64) for k, v in MODEL.latent_shapes.items()}
            ),
            ArgumentError,
            "'0.weight' has values that are not finite in torch.float32",
        ),
    ],
)
def test_calls(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_plain_model_with_nan():
    def model(y):
        mu = pyro.sample("mu", pyro.distributions.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", pyro.distributions.Normal(mu, 1.0), obs=y)

    guide = AutoHypernet(model, example=(Y,))
    with pytest.raises(ArgumentError, match=r"data: the model fails, from NaN in data\[0\] \(8 of 8 entries\)"):
        importance_sample(model, guide, (Y * math.nan,), 4)
    with pytest.raises(ArgumentTypeError, match=r"data: are no arguments of the model, which takes \(y\)"):
        importance_sample(model, guide, (Y, Y), 4)
    with pytest.raises((NonFiniteLossError, ArgumentError)):
        fit(model, guide, (Y * math.nan,), steps=2, progress=False)


NETWORK = "data: are no arguments of the model.*becomes a model by BayesianModel"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        # Before: TypeError "forward() takes 2 positional arguments but 3 were given"; "guide: lacks ... latents []".
        (lambda: fit(net(), problem()[1], (X, Y), steps=1, progress=False), ArgumentTypeError, NETWORK),
        (lambda: importance_sample(net(), GUIDE, (X, Y), 4), ArgumentTypeError, NETWORK),
        (lambda: diagnose(net(), GUIDE, (X, Y)), ArgumentTypeError, NETWORK),
        (
            lambda: fit(net(), problem()[1], (X,), steps=1, progress=False),
            ArgumentError,
            "model: has no latent variables.*BayesianModel",
        ),
        # Before: "clip_norm: is <property object at ...>".
        (lambda: fit(MODEL, AutoHypernet, (X, Y)), ArgumentTypeError, "guide: is the class AutoHypernet"),
        # Before: all entries of the tensor.
        (
            lambda: fit(MODEL, GUIDE, X, Y),
            ArgumentTypeError,
            r"steps: is a Tensor of shape \(8,\); pass data of several parts as one tuple \(x, y\)\.$",
        ),
        (
            lambda: importance_sample(MODEL, GUIDE, X, Y),
            ArgumentTypeError,
            r"num_samples: is a Tensor of shape \(8,\); pass data .* \(x, y\)\.$",
        ),
        # Before: advice of a generator function, which fit refuses.
        (
            lambda: fit(MODEL, GUIDE, [(X, Y, X)], steps=1, progress=False),
            ArgumentError,
            r"data: has 3 parts.*batch\[:2\]; where a loader .* data set of such pairs, or a collate_fn",
        ),
    ],
)
def test_models_guides_and_data_that_are_mixed_up(call, error, match):
    with pytest.raises(error, match=f"^{match}"):
        call()


def test_what_that_advice_recommends_works():
    triples = [(x, y, 0) for x, y in zip(X, Y, strict=True)]
    model, guide = problem()
    model.dataset_size = len(X)
    for loader in (
        DataLoader([pair[:2] for pair in triples], batch_size=4),
        DataLoader(triples, batch_size=4, collate_fn=lambda rows: default_collate(rows)[:2]),
    ):
        assert len(fit(model, guide, loader, steps=2, progress=False)) == 2
