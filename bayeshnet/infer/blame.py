"""What made a loss that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

__all__ = ["UNKNOWN_CAUSE", "non_finite_cause"]

UNKNOWN_CAUSE = "no single site shows it with one particle: look at the data of this batch, and lower lr."


@torch.no_grad()
def non_finite_cause(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rng_state: Tensor,
    params: Iterable[Tensor],
) -> str | None:
    """Repeat a step and say what in it is not finite first: a parameter, or a site of the guide or the model.

    Args:
        model: The Pyro model.
        guide: The guide.
        args: Arguments of the step.
        kwargs: Keyword arguments of the step.
        rng_state: State of torch's generator before the step.
        params: The parameters that were optimised.

    Returns:
        A clause that names it and says what to do, or None if nothing is found.
    """
    if any(not bool(torch.isfinite(param).all()) for param in params):
        return "a parameter is not finite after the last update: lower lr, or bound the gradient with clip_norm."
    torch.set_rng_state(rng_state)
    site = _first_bad_site(model, guide, args, kwargs)
    if site is None:
        return None
    return (
        f"the first site that is not finite is {site}. Look for NaN in the data of this batch and at the parameters "
        "of the site's distribution; lower lr if it happens only after some steps."
    )


def _first_bad_site(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    for where, trace in (("guide", guide_trace), ("model", model_trace)):
        nodes: dict[str, Any] = dict(trace.nodes)
        for name, site in nodes.items():
            if site["type"] != "sample":
                continue
            value = site["value"]
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return f"{name!r} (its value in the {where})"
            log_prob = site["fn"].log_prob(value)
            if not bool(torch.isfinite(log_prob).all()):
                return f"{name!r} (its log-probability in the {where})"
    return None
