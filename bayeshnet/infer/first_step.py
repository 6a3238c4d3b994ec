"""What is looked at before the first step of a fit: its options, and whether model and guide belong together."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from torch import nn

from bayeshnet.checks import require_count, require_positive
from bayeshnet.errors import ArgumentTypeError, BayeshnetError, VectorisationWarning
from bayeshnet.infer.arguments import require_model_and_guide
from bayeshnet.infer.flat_guide import FlatGuide
from bayeshnet.infer.kept_state import restored
from bayeshnet.infer.pair import Pair, require_same_latents
from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["check_optimizer", "check_options", "check_pair", "checked_elbo"]

_OPTIMIZER = (
    "pass a function from parameter groups to an optimiser of torch: lambda groups: torch.optim.Adam(groups, lr=0.01)."
)
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
    require_count("steps", steps)
    require_count("num_particles", num_particles)
    require_positive("lr", lr)
    if clip_norm is not None and clip_norm != math.inf:  # infinity bounds nothing
        require_positive("clip_norm", clip_norm)
    if not isinstance(callbacks, Sequence):
        advice = "callbacks=[function]" if callable(callbacks) else "callbacks=[]"
        raise ArgumentTypeError(f"callbacks: is a {type(callbacks).__name__}; pass a list of functions, {advice}.")
    for i, callback in enumerate(cast("Sequence[object]", callbacks)):
        if not callable(callback):
            raise ArgumentTypeError(f"callbacks[{i}]: is a {type(callback).__name__}; pass a function (step, history).")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ArgumentTypeError(f"{name}: is a {type(function).__name__}; pass a function, or None.")
    # Pyro's own optimisers are functions too, of other arguments; the classes among them are torch's.
    pyros = not isinstance(optimizer, type) and str(getattr(optimizer, "__module__", "")).startswith("pyro.optim")
    if optimizer is not None and (pyros or not callable(optimizer)):
        kind = f"{type(optimizer).__name__}{' of pyro.optim' if pyros else ''}"
        raise ArgumentTypeError(f"optimizer: is a {kind}; {_OPTIMIZER}")


def check_optimizer(made: Any) -> torch.optim.Optimizer:
    """What the function ``optimizer`` returned, if it is an optimiser of torch.

    Raises:
        TypeError: If it is none.
    """
    if isinstance(made, torch.optim.Optimizer):
        return made
    raise ArgumentTypeError(f"optimizer: returned a {type(made).__name__}; {_OPTIMIZER}")


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
    own = guide.original_model if isinstance(guide, FlatGuide) else None
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
            pair = Pair(model, guide, args, kwargs, partial=True, all_latents=_covers_all(model, guide))
            return pair.trouble(num) if num > 1 else None
        except BayeshnetError:
            raise
        except Exception as error:
            _LOGGER.debug("the trial failed: %s", error)
            return None  # whatever it is, the first step says it better
