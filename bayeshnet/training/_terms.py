"""The likelihood's part of an ELBO, read off the traces that the ELBO is computed from."""

from __future__ import annotations

import copy
from typing import Any, cast

from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine.trace_struct import Trace

from bayeshnet.models.learned_points import PRIOR_OF_POINTS

__all__ = ["Terms"]

# Those whose loss is minus the sum over the sites of the model plus that over the sites of the guide, or the
# divergence in its place. Others, and what is derived from these, may compute anything.
_SPLIT = (Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO)


class Terms:
    """An ELBO that notes the log-likelihood of each evaluation.

    The loss is that of the ELBO given, to the bit: its copy runs model and guide as before, and the sums that it has
    computed for the observed sites are read.

    Args:
        elbo: An ELBO of Pyro; it is copied, and stays as it is.

    Attributes:
        elbo: The copy to use in its place.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model():
        ...     pyro.sample("obs", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(1.0))
        >>> guide = lambda: pyro.sample("z", dist.Delta(torch.tensor(1.0)))
        >>> terms = Terms(Trace_ELBO(num_particles=3))
        >>> loss = terms.elbo.loss(model, guide)
        >>> round(terms.take(), 3), round(loss, 3)
        (-0.919, 2.338)
    """

    def __init__(self, elbo: Any) -> None:
        self._sums: list[float] = []
        self.knows = type(elbo) in _SPLIT
        """Whether the ELBO is one whose terms are known."""
        self.elbo = elbo
        if self.knows:
            self.elbo = copy.copy(elbo)
            run = self.elbo._get_trace  # bound to the copy, which is asked for its own settings

            def noted(*args: Any) -> tuple[Trace, Trace]:
                model_trace, guide_trace = run(*args)
                nodes: dict[str, Any] = model_trace.nodes
                observed = (site for site in nodes.values() if site["type"] == "sample" and site["is_observed"])
                sites = [site for site in observed if site["name"] != PRIOR_OF_POINTS]
                self._sums += [cast("float", torch_item(site["log_prob_sum"])) for site in sites]
                return model_trace, guide_trace

            self.elbo._get_trace = noted

    def take(self) -> float | None:
        """Return the mean log-likelihood over the particles since the last call; None if the ELBO does not tell."""
        if not self.knows:
            return None
        total = sum(self._sums) / self.elbo.num_particles
        self._sums.clear()
        return total
