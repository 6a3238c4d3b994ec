"""Log-densities of programs for many draws in one call, and for the same draws one by one."""

from __future__ import annotations

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor


def together_and_alone(model, args=(), *, nesting, num=4) -> tuple[Tensor, Tensor]:
    """The log-density of draws from the prior, all in one run in a plate left of ``nesting`` others, and each alone.

    Both are ``[num]``; the sites of each draw alone are checked to have those of the program itself.
    """
    plate = pyro.plate("particles", num, dim=-1 - nesting)
    trace = poutine.trace(plate(model)).get_trace(*args)
    trace.compute_log_prob()
    subsamples = {name: site["value"] for name, site in trace.nodes.items() if site_is_subsample(site)}
    trace = prune_subsample_sites(trace)
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    together = torch.zeros(num, dtype=torch.float64)
    for name, site in sites.items():
        log_prob = site["log_prob"]
        assert (log_prob.dim(), log_prob.shape[0]) == (nesting + 1, num), name
        together = together + log_prob.reshape(num, -1).sum(1)
    latents = [name for name, site in sites.items() if not site["is_observed"]]
    single = poutine.trace(model).get_trace(*args)
    alone = []
    for i in range(num):
        values = {name: sites[name]["value"][i].reshape(single.nodes[name]["value"].shape) for name in latents}
        conditioned = prune_subsample_sites(
            poutine.trace(poutine.condition(model, data={**values, **subsamples})).get_trace(*args)
        )
        alone.append(conditioned.log_prob_sum())
        assert set(conditioned.stochastic_nodes + conditioned.observation_nodes) == set(sites)
    return together.detach(), torch.stack(alone).detach()
