"""Batch norm of a Bayesian network: the statistics of each draw of its weights on reference rows."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, fit, importance_sample, likelihoods, predict
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.layers import BatchNormLayer
from bayeshnet.mnets import MLP, ResNet
from bayeshnet.models.local_reparam import flipout


class Deep(nn.Module):
    """Batch norm of one and two dimensions inside of a module inside of a module, one without scale and shift."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=None), nn.ReLU()), nn.Flatten()
        )
        self.norm = nn.BatchNorm1d(12, affine=False)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.conv(x)).square().mean((2, 3, 4))


NETWORKS = {
    "1d": (lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)), (3,)),
    "sequence": (lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 2)), (2, 5)),
    "deep": (Deep, (1, 4, 4)),
    "3d": (Volume, (1, 3, 3, 3)),
    "MLP": (lambda: MLP(3, 2, [5], use_batch_norm=True, verbose=False), (3,)),
    "own layer": (lambda: nn.Sequential(nn.Linear(3, 6), BatchNormLayer(6), nn.ReLU(), nn.Linear(6, 2)), (3,)),
}


def problem(kind, dtype=torch.float64, rows=30, **options):
    """A model, inputs and draws of its weights."""
    torch.manual_seed(0)
    make, shape = NETWORKS[kind]
    net = make().to(dtype)
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5), **options)
    x = torch.randn(rows, *shape, dtype=dtype)
    return net, model, x, {name: torch.randn(4, *size, dtype=dtype) for name, size in model.latent_shapes.items()}


def by_hand(net, draws, s, x):
    """Outputs of the network in training mode: normalised by the statistics of x."""
    net = copy.deepcopy(net).train()
    weights = {name: value[s] for name, value in draws.items()}
    if isinstance(net, MLP):
        return net(x, weights=list(weights.values()))
    return torch.func.functional_call(net, weights, (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", NETWORKS)
def test_each_draw_has_the_statistics_of_its_own_on_the_reference_rows(kind, dtype):
    net, model, x, draws = problem(kind, dtype)
    model.eval().set_reference_rows(x)
    f, _ = model.conditional(x, draws)
    tolerance = {"rtol": 1e-6, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for s in range(4):
        torch.testing.assert_close(f[s], by_hand(net, draws, s, x), **tolerance)
    # A prediction does not depend on what else is predicted, nor on the mode or how many rows are taken at once.
    torch.testing.assert_close(model.conditional(x[3:4], draws)[0], f[:, 3:4], **tolerance)
    once = model.with_statistics(x, draws)
    torch.testing.assert_close(model.conditional(x[3:4], once)[0], f[:, 3:4], **tolerance)
    part = {name: value[1:3] for name, value in once.items()}
    torch.testing.assert_close(model.conditional(x[3:9], part)[0], f[1:3, 3:9], **tolerance)
    assert torch.equal(model.train().conditional(x, draws)[0], f)


def test_resnet():
    torch.manual_seed(0)
    net = ResNet((8, 8, 1), 3, n=1, verbose=False)
    model = BayesianModel(net, likelihood=likelihoods.Categorical()).eval()
    x = torch.randn(6, 64)
    model.set_reference_rows(x)
    draws = {name: 0.3 * torch.randn(2, *size) for name, size in model.latent_shapes.items()}
    f, _ = model.conditional(x, draws)
    for s in range(2):
        expected = copy.deepcopy(net).train()(x, weights=[value[s] for value in draws.values()])
        torch.testing.assert_close(f[s], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("flat", [False, True])
def test_forward_and_gradient_in_evaluation_mode(flat):
    """What scores observations there: importance weights, chains."""
    net, model, x, draws = problem("1d", flat=flat)
    y = torch.randn(30, 2, dtype=torch.float64)
    model.eval().set_reference_rows(x)
    values = {name: value[0].clone().requires_grad_() for name, value in draws.items()}
    log_p = pyro.poutine.trace(pyro.condition(model, values)).get_trace(x, y).nodes["obs"]
    score = log_p["fn"].log_prob(y).sum()
    grads = torch.autograd.grad(score, list(values.values()))
    flat_values = torch.cat([value.detach().reshape(-1) for value in values.values()])
    names = list(dict(net.named_parameters()))

    def exact(flat):
        shapes = [param.shape for param in net.parameters()]
        parts = [p.reshape(s) for p, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        out = torch.func.functional_call(net, dict(zip(names, parts, strict=True)), (x,))
        return dist.Normal(out, 0.5).log_prob(y).sum()

    net.train()
    flat_values.requires_grad_()
    (expected,) = torch.autograd.grad(exact(flat_values), flat_values)
    torch.testing.assert_close(score, exact(flat_values), rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in grads]), expected, rtol=1e-6, atol=1e-8)


def test_modes():
    net, by_batch, x, draws = problem("deep", batch_norm="batch")
    f, _ = by_batch.eval().conditional(x[:7], draws)
    for s in range(4):
        torch.testing.assert_close(f[s], by_hand(net, draws, s, x[:7]), rtol=1e-6, atol=1e-9)
    with pytest.raises(ArgumentError, match="pass at least two rows"):
        by_batch.conditional(torch.randn(1, 1, 4, 4).double()[:, :, :3, :3], draws)
    net, running, x, draws = problem("1d", batch_norm="running")
    layer = running.net.module[1]
    layer.running_mean.fill_(0.3)
    f, _ = running.eval().conditional(x, draws)
    net[1].running_mean.fill_(0.3)
    expected = torch.func.functional_call(net.eval(), {n: v[1] for n, v in draws.items()}, (x,))
    torch.testing.assert_close(f[1], expected, rtol=1e-6, atol=1e-9)


def test_training_is_by_the_batch_in_one_call_and_keeps_no_running_statistics():
    net, model, x, draws = problem("1d")
    f, _ = model.evaluate(x, {name: value.unsqueeze(1) for name, value in draws.items()})
    for s in range(4):
        torch.testing.assert_close(f[s], by_hand(net, draws, s, x), rtol=1e-6, atol=1e-9)
    assert not model.net.module[1].running_mean.any()
    assert int(model.net.module[1].num_batches_tracked) == 0


def test_a_layer_given_in_evaluation_mode_keeps_its_running_statistics():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)
    )
    net[1].running_mean.normal_()
    net[1].eval()
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5), target_shape=(1,))
    assert model.batch_norm.fixed == ("module.1",)
    assert model.batch_norm.layers == ("module.4",)
    x = torch.randn(30, 3)
    guide = AutoHypernet(model, example=(x, x[:, :1]))
    fit(model, guide, (x, x[:, :1]), 3, progress=False, num_particles=2)
    assert torch.equal(model.net.module[1].running_mean, net[1].running_mean)
    draws = guide.sample_posterior(3)
    f, _ = model.eval().conditional(x, draws)
    for s in range(3):
        expected = torch.func.functional_call(net, {name: value[s] for name, value in draws.items()}, (x,))
        torch.testing.assert_close(f[s], expected, rtol=1e-3, atol=1e-4)
    # All of them: a pretrained body. Nothing is asked for.
    fixed = BayesianModel(copy.deepcopy(net).eval(), likelihood=likelihoods.Normal(scale=0.5)).eval()
    assert fixed.conditional(x, draws)[0].shape[:2] == (3, 30)
    with pytest.raises(UsageError, match="there is nothing to set"):
        fixed.set_reference_rows(x)
    # Later is too late.
    mixed = BayesianModel(net.train(), likelihood=likelihoods.Normal(scale=0.5))
    mixed.net.module[1].eval()
    with pytest.raises(UsageError, match=r"module.1.*after the model was built"):
        mixed(x)


def test_frozen_and_learned_statistics_stay():
    torch.manual_seed(0)
    frozen = BatchNormLayer(6, track_running_stats=False, frozen_stats=True)
    model = BayesianModel(nn.Sequential(nn.Linear(3, 6), frozen), likelihood=likelihoods.Normal(scale=0.5)).eval()
    assert not model.batch_norm.layers
    x, draws = torch.randn(5, 3), {name: torch.randn(2, *size) for name, size in model.latent_shapes.items()}
    f, _ = model.conditional(x, draws)
    plain = F.linear(x, draws["0.weight"][0], draws["0.bias"][0])
    torch.testing.assert_close(f[0], plain * draws["1.scale"][0] + draws["1.bias"][0], rtol=1e-4, atol=1e-4)


def test_where_reference_rows_come_from():
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    x, y = torch.randn(100, 3), torch.randn(100)
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5), reference_rows=20, dataset_size=100)
    with pytest.raises(UsageError, match=r"model.set_reference_rows\(x_train\)"):
        model.eval().conditional(x, {name: torch.randn(2, *size) for name, size in model.latent_shapes.items()})
    model.train()
    guide = AutoHypernet(model, example=(x[:30], y[:30]), conditional=None)
    rows = model.batch_norm.rows_0
    assert torch.equal(rows, x[:30][torch.linspace(0, 29, 20).round().long()])
    AutoHypernet(model, example=(x[50:], y[50:]), conditional=None)  # another guide does not change the model
    assert torch.equal(model.batch_norm.rows_0, rows)
    # Rows of the data of a fit, of a loader those of its first batches; the random stream goes on as if not.
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    fit(model, guide, loader, 2, progress=False)
    assert torch.equal(model.batch_norm.rows_0, x[:24][torch.linspace(0, 23, 20).round().long()])
    fit(model, guide, (x, y), 1, progress=False)
    assert torch.equal(model.batch_norm.rows_0, x[torch.linspace(0, 99, 20).round().long()])
    model.set_reference_rows(x[:10])
    fit(model, guide, (x, y), 1, progress=False)
    assert torch.equal(model.batch_norm.rows_0, x[:10])
    assert "batch_norm: draws, 1 layer, 10 reference rows" in repr(model)


def test_state_copies_and_files():
    _, model, x, draws = problem("deep")
    model.set_reference_rows(x)
    f, _ = model.eval().conditional(x, draws)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.conditional(x, draws)[0], f)
    fresh = problem("deep")[1].eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.conditional(x, draws)[0], f)
    fresh = problem("deep", reference_rows=5)[1].eval()
    fresh.set_reference_rows(x + 1.0)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.conditional(x, draws)[0], f)
    assert fresh.batch_norm.chosen
    without = problem("deep")[1]
    fresh.load_state_dict(without.state_dict())
    assert fresh.batch_norm.rows_kept == 0
    assert model.double().batch_norm.rows_0.dtype == torch.float64
    assert model.float().batch_norm.rows_0.dtype == torch.float32


def test_arguments_of_several_kinds():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.linear, self.norm = nn.Embedding(5, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, ids, x, factor, add):
            return self.norm(self.embed(ids) + self.linear(x) * factor) + add

    torch.manual_seed(0)
    model = BayesianModel(Two(), likelihood=likelihoods.Normal(scale=0.5)).eval()
    x = (torch.randint(5, (20,)), torch.randn(20, 3), torch.tensor(2.0), 1.0)
    model.set_reference_rows(x)
    assert set(dict(model.batch_norm.named_buffers())) == {"rows_0", "rows_1", "by_user"}
    draws = {name: torch.randn(2, *size) for name, size in model.latent_shapes.items()}
    f, _ = model.conditional(x, draws)
    torch.testing.assert_close(f.mean(1), draws["norm.bias"] + 1.0, rtol=1e-4, atol=1e-4)


def test_every_way_to_evaluate():
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    x, y = torch.randn(40, 3), torch.randn(40)
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5))
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), 20, progress=False, num_particles=2)
    fit(flipout(model), guide, (x, y), 2, progress=False, num_particles=2)
    draws = guide.sample_posterior(5)
    one = predict(model, draws, x[:1])
    all_rows = predict(model, draws, x, batch_size=7)
    torch.testing.assert_close(one.mean, all_rows.mean[:1], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(importance_sample(model, guide, (x, y), 10).log_weights).all()
    prior = Predictive(model, num_samples=4, parallel=True)
    assert prior(x[:1])["obs"].shape == (4, 1)  # no batch of its own to normalise by
    guide.calibrate(x, y)
    guide.move_to(guide.loc)


def test_wrong_arguments():
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    normal = likelihoods.Normal(scale=0.5)
    with pytest.raises(ArgumentError, match="batch_norm: is 'none'"):
        BayesianModel(net, likelihood=normal, batch_norm="none")
    for wrong, error in ((1, ArgumentError), (2.5, ArgumentTypeError)):
        with pytest.raises(error, match="reference_rows"):
            BayesianModel(net, likelihood=normal, reference_rows=wrong)
    model = BayesianModel(net, likelihood=normal)
    with pytest.raises(ArgumentError, match="has 1 row"):
        model.set_reference_rows(torch.randn(1, 3))
    with pytest.raises(ArgumentTypeError, match="x: is a list"):
        model.set_reference_rows([1.0, 2.0])
    with pytest.raises(ArgumentError, match="x: has 1 row, a single value per channel"):
        model(torch.randn(1, 3), torch.randn(1))
    for network in (net, nn.Sequential(nn.Linear(3, 6), BatchNormLayer(6))):
        with pytest.raises(ArgumentError, match="drop_last=True"):
            BayesianModel(network, likelihood=normal, batch_norm="running")(torch.randn(1, 3))


def test_another_number_of_calls():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            out = self.norm(self.linear(x))
            return out if len(x) > 10 else self.norm(out)

    model = BayesianModel(Sometimes(), likelihood=likelihoods.Normal(scale=0.5)).eval()
    model.set_reference_rows(torch.randn(20, 3))
    with pytest.raises(UsageError, match="calls batch norm 2 or more times"):
        model.conditional(
            torch.randn(3, 3), {name: torch.randn(2, *size) for name, size in model.latent_shapes.items()}
        )


def test_rows_that_are_not_finite_are_no_reference_rows():
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5))
    x = torch.randn(10, 2)
    x[3, 1], x[7, 0] = torch.nan, torch.inf
    with pytest.raises(ArgumentError, match="NaN or infinite numbers in 2 of 10 rows"):
        model.set_reference_rows(x)
    model.batch_norm.set_rows(x)
    kept = [rows for name, rows in model.batch_norm.named_buffers() if name.startswith("rows_")]
    assert torch.equal(kept[0], x[[0, 1, 2, 4, 5, 6, 8, 9]])


def test_a_single_row_is_checked_without_statistics():
    """They do not matter for its shape; before, a held-out row alone was refused."""
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5))
    model.check_observations(torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ArgumentError, match=r"y: has shape \(2,\)"):
        model.check_observations(torch.zeros(1, 2), torch.zeros(2))
