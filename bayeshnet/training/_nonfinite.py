"""The cause of a loss or a gradient that is not finite."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from bayeshnet.entropy.protocol import BOUND_THE_GRADIENT
from bayeshnet.errors import BayeshnetError
from bayeshnet.sites.data_errors import non_finite_places

__all__ = ["BAD_PARAMETER", "UNKNOWN_CAUSE", "gradient_cause", "non_finite_cause"]

UNKNOWN_CAUSE = "no single site shows it with one particle: look at the data of this batch, and lower lr."
BAD_PARAMETER = f"a parameter is not finite after the last update: lower lr, or {BOUND_THE_GRADIENT}."


@torch.no_grad()
def non_finite_cause(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rng_state: Tensor,
    params: Iterable[Tensor],
) -> str | None:
    """Repeat a step and name what in it is not finite first: a parameter, or a site of the guide or the model.

    Args:
        model: The Pyro model.
        guide: The guide.
        args: Arguments of the step.
        kwargs: Keyword arguments of the step.
        rng_state: State of torch's generator before the step.
        params: The parameters that were optimised.

    Returns:
        A clause that names it and says what to do, or None if nothing is found.

    Raises:
        BayeshnetError: If the repetition raises one, whose message is the better one.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> model = lambda y: pyro.sample("obs", dist.Normal(0.0, 1.0), obs=y)
        >>> args = (torch.tensor(math.inf),)
        >>> print(non_finite_cause(model, lambda y: None, args, {}, torch.get_rng_state(), []))
        the first site that is not finite is 'obs' (its value in the model). The batch holds inf in data[0] ...
    """
    if any(not bool(torch.isfinite(param).all()) for param in params):
        return BAD_PARAMETER
    torch.set_rng_state(rng_state)
    try:
        site = _first_bad_site(model, guide, args, kwargs)
    except BayeshnetError:
        raise
    except Exception:  # what the repetition fails on, without validation, is not what the step failed on
        return None
    if site is None:
        return None
    found = f"the first site that is not finite is {site}."
    if places := non_finite_places(args, kwargs):
        return (
            f"{found} The batch holds {places}: remove or impute these values, or mask them in the model: see "
            "pyro.poutine.mask, or for missing targets BayesianModel(..., missing='ignore')."
        )
    return (
        f"{found} The data of this batch are finite where they are tensors. Look at the parameters of the site's "
        "distribution; lower lr if it happens only after some steps."
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


# ---------------------------------------------------------------------- gradients


def gradient_cause(loss_and_grads: Callable[[], Any], rng_state: Tensor, named: Mapping[str, Tensor]) -> str:
    """Say which gradients of a step are not finite though its loss is, and where they come from.

    The step is repeated twice with the same random numbers: once with hooks on the latents, and once in PyTorch's
    anomaly mode, which names the operation.

    Args:
        loss_and_grads: Repeats the step; the gradients of the parameters are dropped afterwards.
        rng_state: State of torch's generator before the step.
        named: The parameters by name, with the gradients of the step.

    Returns:
        Some clauses that name parameters, latent sites and operation, and say what to do.

    Example:
        >>> x = torch.zeros(1, requires_grad=True)
        >>> step = lambda: (x.sqrt() * 0.0).sum().backward()
        >>> step()
        >>> print(gradient_cause(step, torch.get_rng_state(), {"x": x}))
        the gradients of 'x' are NaN. The first operation whose derivative is NaN is Sqrt... Its slope is infinite ...
    """
    bad = [name for name, p in named.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    kinds = {kind for name in bad for kind in _kinds(named[name].grad)}
    kind = " and ".join(sorted(kinds)) or "not finite"
    watch = _LatentGradients()
    repeat = _Repeat(loss_and_grads, rng_state, list(named.values()))
    with watch:
        repeat()
    with torch.autograd.set_detect_anomaly(True):
        operation = _operation(repeat())
    latents = f", from those of the latents {_listed(watch.names)}" if watch.names else ""
    where = f" The first operation whose derivative is NaN is {operation}." if operation else ""
    if "NaN" in kinds:
        advice = (
            "Its slope is infinite where it was taken: that of sqrt or norm at 0, of log at 0, of a division by 0. "
            "Under torch.where both branches are differentiated, also the one that is not chosen; replace the argument "
            "instead of the result: torch.sqrt(torch.where(z > 0, z, 1.0))."
        )
    else:
        advice = "Look for slopes that are infinite (sqrt at 0), and scale the data; use float64 if it overflows."
    return f"the gradients of {_listed(bad)} are {kind}{latents}.{where} {advice}"


def _kinds(gradient: Tensor | None) -> Generator[str, None, None]:
    if gradient is not None and bool(torch.isnan(gradient).any()):
        yield "NaN"
    if gradient is not None and bool(torch.isinf(gradient).any()):
        yield "infinite"


def _listed(names: list[str], most: int = 4) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


class _Repeat:
    """Runs a step again, and returns what went wrong in it."""

    def __init__(self, step: Callable[[], Any], rng_state: Tensor, params: list[Tensor]) -> None:
        self.step, self.rng_state, self.params = step, rng_state, params

    def __call__(self) -> tuple[str, list[str]]:
        """The message of the error, and those of the warnings."""
        torch.set_rng_state(self.rng_state)
        message = ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.step()
            except Exception as error:  # that of anomaly mode, or one of a step that cannot be repeated
                message = str(error)
            finally:
                for param in self.params:
                    param.grad = None
        return message, [str(warning.message) for warning in caught]


def _operation(outcome: tuple[str, list[str]]) -> str | None:
    """Return what anomaly mode found: the name of a function, and the line of the program that called it."""
    found = re.search(r"Function '(\w+?)(?:Backward\w*)?' returned nan", outcome[0])
    if found is None:
        return None
    traces = [text for text in outcome[1] if "Traceback of forward call" in text]
    calls = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', traces[-1]) if traces else []
    own = [(file, line, code) for file, line, code in calls if not re.search(r"[/\\](torch|pyro)[/\\]", file)]
    where = f" ({own[-1][0]}, line {own[-1][1]}: {own[-1][2].strip()})" if own else ""
    return f"{found[1]}{where}"


class _LatentGradients(Messenger):
    """Notes the latents whose gradients are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if msg["is_observed"] or not isinstance(value, Tensor) or not value.requires_grad:
            return
        if msg["infer"].get("is_auxiliary"):
            return

        def note(gradient: Tensor, name: str = msg["name"]) -> None:
            if not math.isfinite(float(gradient.norm())) and name not in self.names:
                self.names.append(name)

        value.register_hook(note)
