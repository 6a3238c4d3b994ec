"""Time of one training step of a Bayesian 10-50-1 network on 442 rows, against Pyro's way and a hand-written loop.

* ours: ``bayeshnet.fit`` with an ``AutoHypernet`` that draws all weights from its hypernetwork (``conditional=None``;
  also with all weights in one flat site);
* peer: the same network as a ``PyroModule`` with ``PyroSample`` weights, ``AutoNormal`` and ``SVI``, the way of Pyro's
  tutorials (its layers cannot be vectorised over particles); Pyro's validation is off;
* floor: plain PyTorch with the same sampler, the same density and the same loss, written out by hand.

With ``--fused``: what the fused draw of tanh hypernetworks saves of a step, of 100 predictions, and of draw, density
and backward pass alone. A class derived from ``HMLP`` may compute something else, so it gets the general form of the
same draw and density.

Run: ``python benchmarks/svi_step.py [--quick] [--json FILE] [--fused]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

import pyro
import pyro.distributions as dist
import torch
from _common import alternate, parser, report
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.nn import functional as F

import bayeshnet
from bayeshnet import families, likelihoods, priors
from bayeshnet.families import ImplicitWeights
from bayeshnet.hnets import HMLP, HPerturbWrapper

ROWS, INPUTS, HIDDEN, NOISE, NOISE_DIM = 442, 10, 50, 0.5, 20


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, INPUTS)
    return x, x[:, 0].sin() + 0.5 * x[:, 1] + NOISE * torch.randn(ROWS)


def ours(x: Tensor, y: Tensor, num: int, steps: int, *, flat: bool) -> Callable[[], None]:
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    likelihood = likelihoods.Normal(scale=NOISE)
    model = bayeshnet.BayesianModel(net, prior=priors.Normal(scale="fan_in"), likelihood=likelihood, flat=flat)
    guide = bayeshnet.AutoHypernet(
        model, example=(x, y), conditional=None, family=families.Hypernet(noise_dim=NOISE_DIM)
    )

    def run() -> None:
        bayeshnet.fit(model, guide, (x, y), steps=steps, num_particles=num, progress=False)

    return run


class PyroNet(PyroModule):
    """The network as Pyro's tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PyroModule[nn.Linear](INPUTS, HIDDEN)
        self.first.weight = PyroSample(dist.Normal(0.0, INPUTS**-0.5).expand([HIDDEN, INPUTS]).to_event(2))
        self.first.bias = PyroSample(dist.Normal(0.0, 1.0).expand([HIDDEN]).to_event(1))
        self.second = PyroModule[nn.Linear](HIDDEN, 1)
        self.second.weight = PyroSample(dist.Normal(0.0, HIDDEN**-0.5).expand([1, HIDDEN]).to_event(2))
        self.second.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Observe y, or draw it."""
        f = self.second(self.first(x).relu()).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("obs", dist.Normal(f, NOISE), obs=y)


def peer(x: Tensor, y: Tensor, num: int, steps: int) -> Callable[[], None]:
    model = PyroNet()
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=num))

    def run() -> None:
        with pyro.validation_enabled(False):
            for _ in range(steps):
                svi.step(x, y)

    return run


def floor(x: Tensor, y: Tensor, num: int, steps: int) -> Callable[[], None]:
    n, q = NOISE_DIM, 64
    shapes = [(HIDDEN, INPUTS), (HIDDEN,), (1, HIDDEN), (1,)]
    sizes = [math.prod(s) for s in shapes]
    d = sum(sizes)
    scale = torch.cat(
        [torch.full((size,), s) for size, s in zip(sizes, (INPUTS**-0.5, 1.0, HIDDEN**-0.5, 1.0), strict=True)]
    )
    w1, b1 = nn.Parameter(torch.randn(q, n) / n**0.5), nn.Parameter(torch.zeros(q))
    w2, b2 = nn.Parameter(torch.randn(q, q) / q**0.5), nn.Parameter(torch.zeros(q))
    head, mu = nn.Parameter(torch.zeros(d, q)), nn.Parameter(0.3 * torch.randn(d))
    skip, rho = nn.Parameter(0.1 * torch.randn(d, n) / n**0.5), nn.Parameter(torch.full((d,), math.log(0.1)))
    groups = [{"params": [mu, skip, rho], "lr": 0.01}, {"params": [w1, b1, w2, b2, head], "lr": 0.003}]
    optimizer = torch.optim.Adam(groups, fused=True)
    log_scale, log_2pi = scale.log().sum(), math.log(2 * math.pi)

    def loss_of() -> Tensor:
        z = torch.randn(num, d)
        u = z[:, :n]
        h1 = torch.tanh(F.linear(u, w1, b1))
        h2 = torch.tanh(F.linear(h1, w2, b2))
        sigma = rho.exp()
        white = torch.addcmul(torch.addmm(F.linear(h2, head, mu), u, skip.T), sigma, z)
        w = white * scale
        # the n x n determinant of the change of variables
        j1 = (1 - h1 * h1).unsqueeze(1) * w1.T
        j2 = (1 - h2 * h2).unsqueeze(1) * F.linear(j1, w2)
        top = F.linear(j2, head[:n]) + skip[:n].T
        _, log_det = torch.linalg.slogdet(top.double() + torch.diag(sigma[:n].double()))
        log_q = -0.5 * (z.square().sum(-1) + d * log_2pi) - log_det.float() - rho[n:].sum() - log_scale
        log_prior = -0.5 * (white.square().sum(-1) + d * log_2pi) - log_scale
        m1, c1, m2, c2 = [p.reshape(num, *s) for p, s in zip(w.split(sizes, -1), shapes, strict=True)]
        hidden = torch.baddbmm(c1.unsqueeze(1), x.expand(num, -1, -1), m1.transpose(1, 2)).relu()
        f = torch.baddbmm(c2.unsqueeze(1), hidden, m2.transpose(1, 2)).squeeze(-1)
        log_lik = -0.5 * (((y - f) / NOISE).square().sum(-1) + ROWS * (log_2pi + 2 * math.log(NOISE)))
        return (log_q - log_prior - log_lik).mean()

    def run() -> None:
        for _ in range(steps):
            loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()

    return run


class Derived(HMLP):
    """An ``HMLP`` that no fused form stands for."""


def fused(x: Tensor, y: Tensor, num: int, steps: int, kind: type[HMLP]) -> dict[str, Callable[[], None]]:
    """Steps and predictions of a guide with the default's architecture, of this class."""
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    model = bayeshnet.BayesianModel(net, likelihood=likelihoods.Normal(scale=NOISE))
    options = {"uncond_in_size": NOISE_DIM, "cond_in_size": 0, "layers": (64, 64), "verbose": False}

    def build(shapes: list[list[int]]) -> HPerturbWrapper:
        hnet = kind(shapes, activation_fn=nn.Tanh(), linear_skip=True, **options)
        return HPerturbWrapper(hnet, sigma_noise=0.1, learn_sigma="per_weight", verbose=False)

    torch.manual_seed(0)
    guide = bayeshnet.AutoHypernet(model, example=(x, y), conditional=None, hnet=build)
    q = ImplicitWeights(build([[guide.latent_dim]]))

    def alone() -> None:
        for _ in range(steps):
            weights = q.rsample((num,))
            (q.log_prob(weights).mean() + weights.square().sum()).backward()

    return {
        "alone": alone,
        "step": lambda: void(bayeshnet.fit(model, guide, (x, y), steps=steps, num_particles=num, progress=False)),
        "predict": lambda: void(bayeshnet.predict(model, guide, x, 100)),
    }


def void(_: object) -> None:
    """Drop a result."""


def measure_fused(repeats: int) -> tuple[list[dict[str, object]], dict[str, float]]:
    rows: list[dict[str, object]] = []
    summary: dict[str, float] = {}
    x, y = data()
    for num in (1, 16):
        pair = {"fused": fused(x, y, num, 100, HMLP), "general": fused(x, y, num, 100, Derived)}
        for what, count in {"alone": 100, "step": 100, **({"predict": 1} if num == 1 else {})}.items():
            seconds = alternate({name: calls[what] for name, calls in pair.items()}, repeats)
            ratio = median(a / b for a, b in zip(seconds["general"], seconds["fused"], strict=True))
            ms = {name: median(times) / count * 1e3 for name, times in seconds.items()}
            rows.append({"S": num, "what": what, "fused": ms["fused"], "general": ms["general"], "ratio": ratio})
            summary[f"{what}_s{num}"] = ratio
    return rows, summary


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--fused", action="store_true", help="measure the fused draw against the general form")
    args = options.parse_args()
    torch.set_num_threads(1)
    if args.fused:
        report(*measure_fused(5 if args.quick else 15), args)
        return
    # fit sets up an optimiser and ends with a short diagnosis: enough steps to make these a small part of the time.
    steps, repeats = (100, 5) if args.quick else (100, 15)
    rows: list[dict[str, object]] = []
    summary: dict[str, float] = {}
    for num in (1, 16):
        torch.manual_seed(0)
        pyro.clear_param_store()
        x, y = data()
        runs = {
            "ours": ours(x, y, num, steps, flat=False),
            "ours, flat site": ours(x, y, num, steps, flat=True),
            "peer": peer(x, y, num, steps),
            "floor": floor(x, y, num, steps),
        }
        seconds = alternate(runs, repeats)
        ms = {name: median(times) / steps * 1e3 for name, times in seconds.items()}
        for name, time in ms.items():
            to_peer = median(a / b for a, b in zip(seconds[name], seconds["peer"], strict=True))
            to_floor = median(a / b for a, b in zip(seconds[name], seconds["floor"], strict=True))
            rows.append({"S": num, "loop": name, "ms/step": time, "/ peer": to_peer, "/ floor": to_floor})
            if name == "ours":
                summary[f"peer_ratio_s{num}"] = to_peer
                summary[f"floor_ratio_s{num}"] = to_floor
    report(rows, summary, args)


if __name__ == "__main__":
    main()
