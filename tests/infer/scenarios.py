"""Models and measures that every guide is run through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from bayeshnet.infer import Mixture
from tests.infer.problems import EFFECTS, ERRORS, away_from_zero, bnn, eight_schools

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

# The `body` of an AutoHypernet. Those with an exact density at any value come first.
EXACT_BODIES: dict[str, Any] = {"mean_field": "mean_field", "low_rank": "low_rank", "mixture": Mixture(3)}
BODIES: dict[str, Any] = {
    **EXACT_BODIES,
    "mixture of low rank": Mixture(2, of="low_rank"),
    "hypernet": "hypernet",
    "mixture of hypernetworks": Mixture(2, of="hypernet"),
}


def mean_loss(elbo, model, guide, args, repeats: int) -> tuple[float, float]:
    """Mean of repeated losses and its standard error."""
    with torch.no_grad():
        losses = torch.tensor([elbo.loss(model, guide, *args) for _ in range(repeats)], dtype=torch.double)
    return float(losses.mean()), float(losses.std() / math.sqrt(repeats))
