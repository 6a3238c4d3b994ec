"""Checks before the first step of a fit: its options, and whether model and guide belong together."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pyro
import torch
from pyro.infer import ELBO, SVI, ReweightedWakeSleep, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from bayeshnet.checks import kind_of, require_count, require_positive
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError, VectorisationWarning
from bayeshnet.models.capabilities import latents_of
from bayeshnet.sites.arguments import refuse_second_data, require_model_and_guide
from bayeshnet.sites.kept_state import restored
from bayeshnet.sites.traces import PairedTraces, require_same_latents
from bayeshnet.training._schedule import SCHEDULE, makes_scheduler

__all__ = ["check_loss", "check_optimizer", "check_options", "check_pair", "checked_elbo"]

_OPTIMIZER = (
    "pass a function from parameter groups to an optimiser of torch: lambda groups: torch.optim.Adam(groups, lr=0.01)."
)
_STOP = "a function from the losses so far to True or False, such as FlatElbo()"
_LOGGER = logging.getLogger(__name__)


def check_options(
    *,
    steps: Any,
    epochs: Any,
    num_particles: Any,
    lr: Any,
    clip_norm: Any,
    callbacks: Any,
    optimizer: Any,
    lr_schedule: Any,
    stop: Any,
    validation: Any,
) -> None:
    """Raise unless the options of a fit are in range and of the right type.

    Args:
        steps: An integer, 1 or more, or None.
        epochs: The same.
        num_particles: An integer, 1 or more.
        lr: A positive number.
        clip_norm: The same, or None.
        callbacks: A list of functions.
        optimizer: A function from parameter groups to an optimiser of torch, or None.
        lr_schedule: A function, a scheduler of torch, a class of them or a partial of one, or None.
        stop: A function from the losses to True or False, or None.
        validation: Held-out rows, or None.

    Raises:
        ArgumentTypeError: If an option is of another type.
        ArgumentError: If a number is out of range, or a rule for held-out rows is given without any.

    Example:
        >>> known = {"num_particles": 1, "lr": 0.1, "clip_norm": None, "callbacks": [], "optimizer": None}
        >>> check_options(steps=0, epochs=None, lr_schedule=None, stop=None, validation=None, **known)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: steps: is 0; pass a whole number, 1 or more.
    """
    refuse_second_data("steps", steps)
    for name, count in (("steps", steps), ("epochs", epochs)):
        if count is not None:
            require_count(name, count)
    require_count("num_particles", num_particles)
    require_positive("lr", lr)
    if clip_norm is not None and clip_norm != math.inf:  # infinity bounds nothing
        require_positive("clip_norm", clip_norm)
    if not isinstance(callbacks, Sequence):
        advice = "callbacks=[function]" if callable(callbacks) else "callbacks=[]"
        raise ArgumentTypeError(f"callbacks: is {kind_of(callbacks)}; pass a list of functions, {advice}.")
    for i, callback in enumerate(cast("Sequence[object]", callbacks)):
        _require_function(f"callbacks[{i}]", callback, "a function (step, history)")
    if stop is not None:
        _require_function("stop", stop, _STOP, or_none=True)
    if getattr(stop, "watches", "losses") == "validation" and validation is None:
        raise ArgumentError(f"stop: is {stop!r}, which goes by held-out rows; pass validation=(x, y), too.")
    if not (lr_schedule is None or isinstance(lr_schedule, LRScheduler) or makes_scheduler(lr_schedule)):
        _require_function("lr_schedule", lr_schedule, SCHEDULE, or_none=True)
    if optimizer is not None and (_is_pyros(optimizer) or not callable(optimizer)):
        kind = f"{kind_of(optimizer)}{' of pyro.optim' if _is_pyros(optimizer) else ''}"
        raise ArgumentTypeError(f"optimizer: is {kind}; {_OPTIMIZER}")


def _require_function(argument: str, value: Any, what: str, *, or_none: bool = False) -> None:
    """Raise unless a value is a function, and not a class, which could be called too: what it makes counts as true."""
    if isinstance(value, type):
        raise ArgumentTypeError(f"{argument}: is the class {value.__name__}; pass {what}.")
    if not callable(value) or _is_pyros(value):
        also = " of pyro.optim" if _is_pyros(value) else ""
        raise ArgumentTypeError(f"{argument}: is {kind_of(value)}{also}; pass {what}{', or None' if or_none else ''}.")


def _is_pyros(value: Any) -> bool:
    """Whether a value is one of Pyro's own optimisers or schedulers: functions of other arguments.

    The classes of that module are torch's.
    """
    return not isinstance(value, type) and str(getattr(value, "__module__", "")).startswith("pyro.optim")


def check_loss(loss: Any) -> None:
    """Raise unless a value is an ELBO of Pyro with one loss.

    Raises:
        ArgumentTypeError: If it is not.

    Example:
        >>> check_loss(Trace_ELBO())
    """
    advice = "pass an ELBO of Pyro, Trace_ELBO(num_particles=16)"
    if isinstance(loss, type):
        raise ArgumentTypeError(f"loss: is the class {loss.__name__}; {advice}.")
    if isinstance(loss, ReweightedWakeSleep):
        raise ArgumentTypeError(
            "loss: is a ReweightedWakeSleep, which has two losses, and fit minimises one; use pyro.infer.SVI with it, "
            f"or {advice}."
        )
    if type(loss).__name__.startswith("Jit") and isinstance(loss, ELBO):
        raise ArgumentTypeError(
            f"loss: is a {type(loss).__name__}, which compiles a step for parameters in Pyro's global store, and those "
            f"of guides and models of this package live in their modules; {advice}."
        )
    if isinstance(loss, SVI) or not callable(getattr(loss, "loss_and_grads", None)):
        raise ArgumentTypeError(f"loss: is {kind_of(loss)}; {advice}.")


def check_optimizer(made: Any) -> torch.optim.Optimizer:
    """Return what the function ``optimizer`` has made, if it is an optimiser of torch.

    Raises:
        ArgumentTypeError: If it is not.

    Example:
        >>> check_optimizer(torch.optim.SGD([torch.zeros(1)], lr=0.1)).defaults["lr"]
        0.1
    """
    if isinstance(made, torch.optim.Optimizer):
        return made
    raise ArgumentTypeError(f"optimizer: returned {kind_of(made)}; {_OPTIMIZER}")


def check_pair(model: Any, guide: Any) -> None:
    """Raise unless the two are a model and a guide with its latents, as far as both say what these are.

    Raises:
        ArgumentTypeError: If one of them cannot be called, or they are given in the wrong order.
        ArgumentError: If their latents differ.

    Example:
        >>> check_pair(lambda: None, lambda: None)
    """
    require_model_and_guide(model, guide)
    prototype = getattr(guide, "prototype_trace", None)
    latents = latents_of(model)
    if latents is not None and prototype is not None:
        given = [name for name, _ in prototype.iter_stochastic_nodes()]
        require_same_latents(list(latents), given, partial=not _covers_all(model, guide))


def _covers_all(model: Any, guide: Any) -> bool:
    """Whether a guide draws all latents of a model: one that knows the model that it was built from does, of that.

    Of a model in Pyro's handlers some latents may be hidden, and are left to the prior on purpose.
    """
    own = getattr(guide, "original_model", None)
    return own is model or (latents_of(own) is not None and latents_of(model) is not None)


def checked_elbo(
    elbo: Any, model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Return the given ELBO, or one that evaluates its particles in turn where all in one call would be wrong.

    Args:
        elbo: A ``Trace_ELBO`` with vectorised particles.
        model: The model, other than a :class:`~bayeshnet.BayesianModel`, which needs no trial.
        guide: Its guide.
        args: Arguments of both, possibly a minibatch.
        kwargs: Keyword arguments of both.

    Raises:
        ArgumentError: If the latents of model and guide differ.

    Example:
        >>> import pyro.distributions as dist
        >>> model = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
        >>> checked_elbo(elbo, model, model, (), {}) is elbo
        True
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
        stacklevel=stacklevel_of_user(),
    )
    return Trace_ELBO(num_particles=num)


def _trial(
    model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, num: int
) -> str | None:
    """Run a model and its guide before a fit; return what goes wrong with particles in one call, None if nothing does.

    Torch's random numbers, Pyro's parameter store and the buffers of modules are left as they were.

    Args:
        model: The model.
        guide: Its guide.
        args: Arguments of both, possibly a minibatch.
        kwargs: Keyword arguments of both.
        num: Number of particles in the call; 1 to look at the latents only.

    Raises:
        ArgumentError: If the latents of the two differ.
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
