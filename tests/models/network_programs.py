"""Programs with networks in them, each with the number of plates that are inside each other."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from bayeshnet import priors
from bayeshnet.models import RandomModule

ROWS = 6


def mlp(inputs=2, outputs=1):
    return nn.Sequential(nn.Linear(inputs, 3), nn.Tanh(), nn.Linear(3, outputs)).double()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(2, 2, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0][:, -1, :1]


def data(*row):
    return torch.randn(ROWS, *(row or (2,))).double(), torch.randn(ROWS).double()


# ---------------------------------------------------------------------- programs, and how many plates they have


def plain(make=mlp, rows=(2,), **options):
    f, (x, y) = RandomModule(make(), **options), data(*rows)

    def model():
        scale = pyro.sample("scale", dist.Gamma(torch.tensor(3.0).double(), 4.0))
        mean = f(x).squeeze(-1)
        with pyro.plate("data", ROWS):
            pyro.sample("obs", dist.Normal(mean, scale), obs=y)

    return model, 1


def inside_of_the_plate_of_the_rows():
    g, (x, y) = RandomModule(mlp()), data()

    def model():
        f = g.sample()
        with pyro.plate("data", ROWS):
            pyro.sample("obs", dist.Normal(f(x).squeeze(-1), 1.0), obs=y)

    return model, 1


def without_plates():
    f, (x, y) = RandomModule(mlp(), event_dim=2), data()

    def model():
        # All rows are one event, so that they are to the right of whatever Pyro vectorises.
        mean = f(x.reshape(1, ROWS, 2)[0]).squeeze(-1)
        pyro.sample("obs", dist.Normal(mean, 1.0).to_event(1), obs=y)

    return model, 0


def nested_plates():
    f = RandomModule(mlp())
    x, y = torch.randn(3, ROWS, 2).double(), torch.randn(3, ROWS).double()

    def model():
        groups = pyro.plate("groups", 3, dim=-2)
        with groups:
            shift = pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 1.0))
        mean = f(x).squeeze(-1) + shift
        with groups, pyro.plate("rows", ROWS, dim=-1):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model, 2


def a_network_for_each_group():
    f = RandomModule(mlp())
    x, y = torch.randn(3, ROWS, 2).double(), torch.randn(3, ROWS).double()

    def model():
        groups = pyro.plate("groups", 3, dim=-2)
        with groups:
            g = f.sample()
        assert g.batch_shape[-2:] == (3, 1)
        with groups, pyro.plate("rows", ROWS, dim=-1):
            pyro.sample("obs", dist.Normal(g(x).squeeze(-1), 1.0), obs=y)

    return model, 2


def a_network_for_each_group_at_shared_rows():
    f, x = RandomModule(mlp(), flat=True), torch.randn(ROWS, 2).double()
    y = torch.randn(3, ROWS).double()

    def model():
        with pyro.plate("groups", 3, dim=-2):
            mean = f(x).squeeze(-1)
            with pyro.plate("rows", ROWS, dim=-1):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model, 2


def a_random_half_of_the_rows():
    f, (x, y) = RandomModule(mlp()), data()

    def model():
        g = f.sample()
        with pyro.plate("data", ROWS, subsample_size=3) as chosen:
            pyro.sample("obs", dist.Normal(g(x[chosen]).squeeze(-1), 1.0), obs=y[chosen])

    return model, 1


def latent_inputs():
    f, (_, y) = RandomModule(mlp()), data()

    def model():
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(0.0, 1.0).expand([ROWS]).mask(False), obs=y)
        mean = f(z).squeeze(-1)
        with pyro.plate("again", ROWS):
            pyro.sample("of_z", dist.Normal(mean, 1.0), obs=y)

    return model, 1


def latent_images():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)).double()
    f, (x, y) = RandomModule(net, event_dim=3), data(1, 3, 3)

    def model():
        gain = pyro.sample("gain", dist.Normal(torch.ones(()).double(), 0.1))
        mean = f(x * gain[..., None, None, None]).squeeze(-1)
        with pyro.plate("data", ROWS):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model, 1


def the_sum_of_two_networks():
    f, g, (x, y) = RandomModule(mlp(), name="f"), RandomModule(mlp(1), priors.Normal(0.5), name="g"), data()

    def model():
        mean = f(x[:, :2]) + g(x[:, 1:])
        with pyro.plate("data", ROWS):
            pyro.sample("obs", dist.Normal(mean.squeeze(-1), 1.0), obs=y)

    return model, 1


def a_network_of_a_network():
    f, g, (x, y) = RandomModule(mlp(2, 3), name="inner"), RandomModule(mlp(3), name="outer"), data()

    def model():
        with pyro.plate("data", ROWS):
            pyro.sample("nothing", dist.Normal(torch.zeros(()).double(), 1.0))
        mean = g(f(x)).squeeze(-1)
        with pyro.plate("rows", ROWS):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model, 1


def called_twice():
    f, (x, y) = RandomModule(mlp()), data()

    def model():
        g = f.sample()
        slope = g(x + 0.1) - g(x)
        with pyro.plate("data", ROWS):
            pyro.sample("obs", dist.Normal(slope.squeeze(-1), 1.0), obs=y)

    return model, 1


def looped():
    return plain(lambda: Recurrent().double(), (4, 2), event_dim=2)


def looped_with_latent_inputs():
    f, (x, y) = RandomModule(Recurrent().double(), event_dim=2), data(4, 2)

    def model():
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(x, 1.0).to_event(2))
        mean = f(z).squeeze(-1)
        with pyro.plate("rows", ROWS):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model, 1


PROGRAMS = [
    plain,
    lambda: plain(flat=True),
    lambda: plain(prior=dist.Laplace(0.0, 1.0)),
    lambda: plain(prior=priors.Normal(learn=True)),
    inside_of_the_plate_of_the_rows,
    without_plates,
    nested_plates,
    a_network_for_each_group,
    a_network_for_each_group_at_shared_rows,
    a_random_half_of_the_rows,
    latent_inputs,
    latent_images,
    the_sum_of_two_networks,
    a_network_of_a_network,
    called_twice,
    looped,
    looped_with_latent_inputs,
]
