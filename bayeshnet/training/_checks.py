"""What is looked at before the first step of a fit: its options, and whether model and guide belong together."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pyro
import torch
from pyro.infer import SVI, ReweightedWakeSleep, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from torch import nn

from bayeshnet.checks import kind_of, require_count, require_positive, shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError, VectorisationWarning
from bayeshnet.guides.base import Guide
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.sites.arguments import refuse_second_data, require_model_and_guide
from bayeshnet.sites.kept_state import restored
from bayeshnet.sites.traces import PairedTraces, require_same_latents

__all__ = ["check_loss", "check_optimizer", "check_options", "check_pair", "checked_elbo", "checked_schedule"]

_OPTIMIZER = (
    "pass a function from parameter groups to an optimiser of torch: lambda groups: torch.optim.Adam(groups, lr=0.01)."
)
_FUNCTIONS = {
    "lr_schedule": "a function from the step to a factor of lr, lambda step: 0.999**step",
    "stop": "a function from the losses so far to True or False, such as FlatElbo()",
}
_LOGGER = logging.getLogger(__name__)


def check_options(
    *, steps: Any, num_particles: Any, lr: Any, clip_norm: Any, callbacks: Any, optimizer: Any, **functions: Any
) -> None:
    """Refuse options of a fit that are out of range, or of the wrong type.

    Args:
        steps: A whole number, 1 or more.
        num_particles: The same.
        lr: A positive number.
        clip_norm: The same, or None.
        callbacks: A list of functions.
        optimizer: A function from parameter groups to an optimiser of torch, or None.
        functions: Other functions, or None, by name.

    Raises:
        TypeError: If one is of another type.
        ValueError: If a number is out of range.
    """
    refuse_second_data("steps", steps)
    require_count("steps", steps)
    require_count("num_particles", num_particles)
    require_positive("lr", lr)
    if clip_norm is not None and clip_norm != math.inf:  # infinity bounds nothing
        require_positive("clip_norm", clip_norm)
    if not isinstance(callbacks, Sequence):
        advice = "callbacks=[function]" if callable(callbacks) else "callbacks=[]"
        raise ArgumentTypeError(f"callbacks: is {kind_of(callbacks)}; pass a list of functions, {advice}.")
    for i, callback in enumerate(cast("Sequence[object]", callbacks)):
        if not callable(callback):
            raise ArgumentTypeError(f"callbacks[{i}]: is {kind_of(callback)}; pass a function (step, history).")
        _refuse_class(f"callbacks[{i}]", callback)
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ArgumentTypeError(
                f"{name}: is {kind_of(function)}; pass {_FUNCTIONS.get(name, 'a function')}, or None."
            )
        _refuse_class(name, function)
    # Pyro's own optimisers are functions too, of other arguments; the classes among them are torch's.
    pyros = not isinstance(optimizer, type) and str(getattr(optimizer, "__module__", "")).startswith("pyro.optim")
    if optimizer is not None and (pyros or not callable(optimizer)):
        kind = f"{type(optimizer).__name__}{' of pyro.optim' if pyros else ''}"
        raise ArgumentTypeError(f"optimizer: is a {kind}; {_OPTIMIZER}")


def _refuse_class(argument: str, function: Any) -> None:
    """Refuse a class in place of a function, which could be called too: what it makes counts as true."""
    if isinstance(function, type):
        what = _FUNCTIONS.get(argument, "a function")
        raise ArgumentTypeError(f"{argument}: is the class {function.__name__}; pass {what}.")


def check_loss(loss: Any) -> None:
    """Refuse what is no ELBO of Pyro, or has not one loss.

    Raises:
        TypeError: If it is none.
    """
    advice = "pass an ELBO of Pyro, Trace_ELBO(num_particles=16)"
    if isinstance(loss, type):
        raise ArgumentTypeError(f"loss: is the class {loss.__name__}; {advice}.")
    if isinstance(loss, ReweightedWakeSleep):
        raise ArgumentTypeError(
            "loss: is a ReweightedWakeSleep, which has two losses, and fit minimises one; use pyro.infer.SVI with it, "
            f"or {advice}."
        )
    if isinstance(loss, SVI) or not callable(getattr(loss, "loss_and_grads", None)):
        raise ArgumentTypeError(f"loss: is {kind_of(loss)}; {advice}.")


def checked_schedule(schedule: Callable[[int], Any]) -> Callable[[int], float]:
    """The same schedule, which refuses to return what no learning rate can be multiplied by."""

    def factor(step: int) -> float:
        made = schedule(step)
        try:
            value = float(made)
        except (TypeError, ValueError, RuntimeError):
            raise ArgumentTypeError(
                f"lr_schedule: returned {shown(made)} at step {step}; pass {_FUNCTIONS['lr_schedule']}."
            ) from None
        if not 0.0 <= value < math.inf:
            raise ArgumentError(f"lr_schedule: is {value:g} at step {step}; return a finite factor, 0 or more.")
        return value

    return factor


def check_optimizer(made: Any) -> torch.optim.Optimizer:
    """What the function ``optimizer`` returned, if it is an optimiser of torch.

    Raises:
        TypeError: If it is none.
    """
    if isinstance(made, torch.optim.Optimizer):
        return made
    raise ArgumentTypeError(f"optimizer: returned {kind_of(made)}; {_OPTIMIZER}")


def check_pair(model: Any, guide: Any) -> None:
    """Refuse what is no model and guide, and the guide of another model where both say what their latents are.

    Raises:
        TypeError: If one of them cannot be called, or they are given in the wrong order.
        ValueError: If their latents differ.
    """
    require_model_and_guide(model, guide)
    prototype = getattr(guide, "prototype_trace", None)
    if isinstance(model, BayesianModel) and prototype is not None:
        given = [name for name, _ in prototype.iter_stochastic_nodes()]
        require_same_latents(list(model.latent_shapes), given, partial=not _covers_all(model, guide))


def _covers_all(model: Any, guide: Any) -> bool:
    """Whether a guide draws all latents of a model: this package's do, of the very model that they were built from.

    Of a model in Pyro's handlers some latents may be hidden, and are left to the prior on purpose.
    """
    own = guide.original_model if isinstance(guide, Guide) else None
    return own is model or (isinstance(own, BayesianModel) and isinstance(model, BayesianModel))


def checked_elbo(
    elbo: Any, model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The ELBO that is given, or one that makes draws in turn if those made together would be wrong.

    Args:
        elbo: A ``Trace_ELBO`` with vectorised particles.
        model: The model, none of a network.
        guide: Its guide.
        args: Arguments of both, a minibatch possibly.
        kwargs: Keyword arguments of both.

    Raises:
        ValueError: If the latents of model and guide differ.
    """
    num = elbo.num_particles
    trouble = _trial(model, guide, args, kwargs, num=min(2, num))
    if trouble is None:
        return elbo
    warnings.warn(
        f"The model or its guide is wrong for {num} particles in one vectorised call ({trouble}); they are evaluated "
        f"in turn, which takes about {num} times as long. Let all sites broadcast over a dimension to the left of "
        "the plates, or pass num_particles=1 for cheaper steps.",
        VectorisationWarning,
        stacklevel=4,
    )
    return Trace_ELBO(num_particles=num)


def _trial(
    model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, num: int
) -> str | None:
    """Run a model and its guide before a fit: what goes wrong with draws made together, None if nothing does.

    Torch's random numbers, Pyro's parameter store and the buffers of modules are left as they were.

    Args:
        model: The model.
        guide: Its guide.
        args: Arguments of both, a minibatch possibly.
        kwargs: Keyword arguments of both.
        num: Number of draws made together; 1 to look at the latents only.

    Raises:
        ValueError: If the latents of the two differ.
    """
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        # Here, as its first call would: with the caller's random numbers.
        guide._setup_prototype(*args, **kwargs)  # pyright: ignore[reportPrivateUsage] - Pyro has no other way
    store = pyro.get_param_store()
    buffers = [buffer for part in (model, guide) if isinstance(part, nn.Module) for buffer in part.buffers()]
    with (
        torch.random.fork_rng(devices=[]),
        store.scope(store.get_state()),
        warnings.catch_warnings(),
        restored(buffers),  # running statistics, for instance
    ):
        warnings.simplefilter("ignore")
        try:
            pair = PairedTraces(model, guide, args, kwargs, partial=True, all_latents=_covers_all(model, guide))
            return pair.trouble(num) if num > 1 else None
        except BayeshnetError:
            raise
        except Exception as error:
            _LOGGER.debug("the trial failed: %s", error)
            return None  # whatever it is, the first step says it better
