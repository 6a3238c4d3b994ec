"""Models and measures that every guide is run through."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from bayeshnet.families import Mixture
from tests.problems import EFFECTS, ERRORS, away_from_zero, bnn, eight_schools

Y = torch.tensor([3.0, 3.5, 4.0, 2.0])
PROBLEMS: dict[str, Callable[[], Any]] = {
    "bnn": bnn,
    "flat bnn": lambda: bnn(flat=True),
    "minibatch bnn": lambda: bnn(dataset_size=90),
    "eight schools": lambda: (eight_schools, (ERRORS, EFFECTS)),
    "constrained": lambda: (away_from_zero, (Y,)),
}
# In parallel Pyro gives a vector no place for the plate, so that this model's arithmetic fails, with any guide.
PREDICTIVE = [
    (name, parallel) for name in PROBLEMS for parallel in (False, True) if (name, parallel) != ("constrained", True)
]

# The `family` of an AutoHypernet. Those with an exact density at any value come first.
EXACT_FAMILIES: dict[str, Any] = {
    "mean_field": "mean_field",
    "low_rank": "low_rank",
    "block_gaussian": "block_gaussian",
    "mixture": Mixture(num_components=3),
}
FAMILIES: dict[str, Any] = {
    **EXACT_FAMILIES,
    "mixture of low rank": Mixture("low_rank", 2),
    "hypernet": "hypernet",
    "mixture of hypernetworks": Mixture("hypernet", 2),
}


def mean_loss(elbo, model, guide, args, repeats: int) -> tuple[float, float]:
    """Mean of repeated losses and its standard error."""
    with torch.no_grad():
        losses = torch.tensor([elbo.loss(model, guide, *args) for _ in range(repeats)], dtype=torch.double)
    return float(losses.mean()), float(losses.std() / math.sqrt(repeats))


def assert_elbos_agree(model, guide, args, *, loops: int) -> None:
    """All of Pyro's bounds see one density, and those of Renyi rise with their particles, within 5 standard errors.

    Args:
        model: The model.
        guide: The guide.
        args: The model's arguments.
        loops: Losses of a single particle to take the mean of.
    """
    options = {"num_particles": 50, "vectorize_particles": True}
    plain, plain_error = mean_loss(Trace_ELBO(**options), model, guide, args, 20)
    field, field_error = mean_loss(TraceMeanField_ELBO(**options), model, guide, args, 20)
    looped, looped_error = mean_loss(Trace_ELBO(num_particles=1), model, guide, args, loops)
    # Renyi's bound for one particle is the ELBO.
    renyi, renyi_error = mean_loss(RenyiELBO(num_particles=1), model, guide, args, loops)
    for other, error in ((field, field_error), (looped, looped_error), (renyi, renyi_error)):
        assert abs(plain - other) < 5 * math.hypot(plain_error, error)
    # With more particles it rises to the evidence.
    more = [mean_loss(RenyiELBO(num_particles=k, vectorize_particles=True), model, guide, args, 25) for k in (2, 8, 64)]
    for (above, above_error), (below, below_error) in pairwise([(plain, plain_error), *more]):
        assert below < above + 5 * math.hypot(above_error, below_error)
