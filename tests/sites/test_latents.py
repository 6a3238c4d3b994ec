"""From a vector of all latents to the sites of a guide."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Size
from torch.distributions.transforms import ExpTransform

from bayeshnet.errors import ArgumentError
from bayeshnet.sites.latents import (
    LatentSite,
    _shape_in_batch,
    constrained,
    emit_normal_sites,
    emit_sites,
    latent_sites,
)

SITES = [
    LatentSite("w", Size([3, 2]), 2, 2, None, ()),
    LatentSite("scale", Size([4]), 0, 0, ExpTransform(), ("groups",)),
]
D = 10


def plates():
    return {"groups": pyro.plate("groups", 4, dim=-1)}


def traced(fn, *args, **kwargs):
    trace = poutine.trace(fn).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace


@pytest.mark.parametrize("batch", [(), (1,), (5,), (5, 1), (5, 7, 1)])
def test_shape_in_a_batch_is_what_broadcasting_gives(batch):
    for places, event_dim, size in itertools.product(range(3), range(3), (1, 4)):
        shape = Size([size] * places + [2] * event_dim)
        if places and batch and batch[-1] not in (1, size) and size != 1:
            continue  # draws of one plate have no place in another
        site = LatentSite("z", shape, event_dim, event_dim, None, ())
        try:
            expected = torch.broadcast_shapes(shape, (*batch, *(1,) * event_dim))
        except RuntimeError:
            continue
        assert tuple(_shape_in_batch(site, Size(batch))) == tuple(expected)


def test_sites_of_a_draw():
    latent = torch.randn(D)
    trace = traced(emit_sites, SITES, latent, plates())
    assert torch.equal(trace.nodes["w"]["value"], latent[:6].reshape(3, 2))
    assert torch.equal(trace.nodes["scale"]["value"], latent[6:].exp())
    assert float(trace.nodes["w"]["log_prob_sum"]) == float(trace.nodes["scale"]["log_prob_sum"]) == 0.0
    # The density of exp(u) is that of u times exp(-u).
    torch.testing.assert_close(trace.nodes["_jac_scale"]["log_prob"], -latent[6:])
    assert "_jac_w" not in trace.nodes
    assert [frame.name for frame in trace.nodes["scale"]["cond_indep_stack"]] == ["groups"]


def test_no_jacobian_for_a_point_or_under_a_mask():
    assert "_jac_scale" not in traced(emit_sites, SITES, torch.randn(D), plates(), jacobian=False).nodes
    with poutine.mask(mask=False):
        assert "_jac_scale" not in traced(emit_sites, SITES, torch.randn(D), plates()).nodes
        assert "_jac_scale" not in traced(emit_normal_sites, SITES, torch.zeros(D), torch.ones(D), plates()).nodes


def test_vectorised_draws():
    latent = torch.randn(5, 1, D)
    with pyro.plate("particles", 5, dim=-2):
        values = emit_sites(SITES, latent, plates())
    assert values["w"].shape == (5, 1, 3, 2)
    assert values["scale"].shape == (5, 4)
    torch.testing.assert_close(values["scale"], latent[:, 0, 6:].exp())


def test_sites_of_gaussians():
    mean, std = torch.randn(D), torch.rand(D) + 0.1
    trace = traced(emit_normal_sites, SITES, mean, std, plates())
    w, scale = trace.nodes["w"]["value"], trace.nodes["scale"]["value"]
    expected = dist.Normal(mean[:6], std[:6]).log_prob(w.flatten()).sum()
    torch.testing.assert_close(trace.nodes["w"]["log_prob_sum"], expected)
    total = sum(trace.nodes[name]["log_prob_sum"] for name in ("scale_unconstrained", "_jac_scale", "scale"))
    torch.testing.assert_close(total, dist.LogNormal(mean[6:], std[6:]).log_prob(scale).sum())


def test_values_of_many_draws():
    latent = torch.randn(7, D)
    values = constrained(SITES, latent)
    assert values["w"].shape == (7, 3, 2)
    torch.testing.assert_close(values["scale"], latent[:, 6:].exp())


def test_a_point_mass_at_another_value():
    trace = poutine.trace(emit_sites).get_trace(SITES, torch.zeros(D), plates())
    fn = trace.nodes["w"]["fn"]
    assert float(fn.log_prob(torch.zeros(3, 2))) == 0.0
    assert float(fn.log_prob(torch.ones(3, 2))) == -torch.inf
    assert fn.rsample((4,)).shape == (4, 3, 2)


def test_sites_of_a_model():
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        with pyro.plate("groups", 4):
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))

    sites = latent_sites(poutine.trace(model).get_trace())
    assert [(s.name, tuple(s.shape), s.event_dim, s.value_event_dim, s.plates) for s in sites] == [
        ("w", (3, 2), 2, 2, ()),
        ("scale", (4,), 0, 0, ("groups",)),
        ("simplex", (2,), 1, 1, ()),
    ]
    assert sites[0].transform is None
    with pytest.raises(ArgumentError, match="latent site 'k' .Bernoulli. is discrete"):
        latent_sites(poutine.trace(lambda: pyro.sample("k", dist.Bernoulli(0.5))).get_trace())
    with pytest.raises(ArgumentError, match="no latent variables"):
        latent_sites(poutine.trace(lambda: None).get_trace())
