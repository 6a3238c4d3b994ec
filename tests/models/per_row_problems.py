"""Networks, models and guides for noise of its own for each row."""

from __future__ import annotations

import pyro
import torch
from pyro import poutine
from torch import nn

from bayeshnet import (
    AutoHypernetNormal,
    BayesianModel,
    flipout,
    likelihoods,
    local_reparameterisation,
    priors,
)
from bayeshnet.mnets import MLP

ROWS = 5
WRAPPERS = {"local": local_reparameterisation, "flipout": flipout}


class Twice(nn.Module):
    """One weight at two places."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class Pooled(nn.Module):
    """Sequences, whose positions meet the same weights."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)).mean(1))


class Double(nn.Module):
    def forward(self, weight):
        return 2.0 * weight


class Doubled(nn.Linear):
    """The layer is given another tensor than the one that was drawn."""

    def __init__(self):
        super().__init__(3, 2)
        nn.utils.parametrize.register_parametrization(self, "weight", Double())


NETS = {
    "linear": (lambda: nn.Linear(3, 2), (3,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)), (3,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(3, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False)), (3,)),
    "main net": (lambda: MLP(3, 1, (6,), verbose=False), (3,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)), (3,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1)),
        (2, 4, 4),
    ),
    "sequence": (Pooled, (6, 3)),
    "twice": (Twice, (3,)),
    "parametrised": (Doubled, (3,)),
}


def problem(name, *, rows=ROWS, spread=0.5, flat=False, dtype=torch.float32, dataset_size=None):
    make, shape = NETS[name]
    x = torch.randn(rows, *shape, dtype=dtype)
    net = make().to(dtype)
    y = torch.randn_like(net(x)).detach()
    model = BayesianModel(
        net,
        prior=priors.Normal(scale=1.0),
        likelihood=likelihoods.Normal(scale=0.5),
        flat=flat,
        dataset_size=dataset_size,
        target_shape=y.shape[1:],
    )
    return model, AutoHypernetNormal(model, example=(x, y), init_scale=spread), (x, y)


@torch.no_grad()
def outputs(model, guide, args, num):
    """Network outputs ``[num, B]`` as an ELBO with vectorised particles sees them."""

    def many(fn):
        def run(*args):
            with pyro.plate("num", num, dim=-2):
                return fn(*args)

        return run

    trace = poutine.trace(many(guide)).get_trace(*args)
    scored = poutine.trace(poutine.replay(many(model), trace=trace)).get_trace(*args)
    return scored.nodes["obs"]["fn"].base_dist.loc.reshape(num, ROWS, -1)
