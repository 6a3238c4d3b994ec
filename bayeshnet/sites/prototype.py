"""The prototype trace of a model: values of its latents, and a trace that can be kept and copied."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import biject_to

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.sites.latents import nodes_of, plain_support

__all__ = ["CheckedInit", "detach_trace", "prior_draw", "refuse_sampled_layers"]

_CONTAINERS = "torch.nn.modules.container"


def prior_draw(site: Any) -> Tensor:
    """Return a prior draw for a site, or the middle of its support if the prior is improper.

    Args:
        site: The message of the site.

    Example:
        >>> import pyro.distributions as dist
        >>> prior_draw({"fn": dist.ImproperUniform(dist.constraints.positive, (), (2,))})
        tensor([1., 1.])
    """
    fn = site["fn"]
    try:
        return fn.sample()
    except NotImplementedError:
        transform = biject_to(plain_support(fn.support))
        return transform(torch.zeros(transform.inverse_shape(fn.batch_shape + fn.event_shape)))


class CheckedInit:
    """A per-site initialisation function whose values are checked.

    Args:
        init_loc_fn: From a site to its value, as Pyro's ``init_to_median``; None for a draw from the prior.

    Raises:
        ArgumentTypeError: If it cannot be called with one site.

    Example:
        >>> import pyro.distributions as dist
        >>> init = CheckedInit(lambda site: torch.zeros(3))
        >>> init({"name": "w", "fn": dist.Normal(torch.zeros(3), 1.0)})
        tensor([0., 0., 0.])
    """

    def __init__(self, init_loc_fn: Callable[..., Any]) -> None:
        if not callable(init_loc_fn):
            raise ArgumentTypeError(
                f"init_loc_fn: is {kind_of(init_loc_fn)}; pass a function from a site to its value, such as "
                "pyro.infer.autoguide.init_to_median or init_to_value(values={...}), or None."
            )
        try:
            signature = inspect.signature(init_loc_fn)
        except (TypeError, ValueError):  # builtins have none
            signature = None
        try:
            _ = signature and signature.bind("site")
        except TypeError as reason:
            raise ArgumentTypeError(
                f"init_loc_fn: the function takes {signature}, but is called with one site ({reason})."
            ) from None
        self.init_loc_fn = init_loc_fn

    def __call__(self, site: Any) -> Any:
        """Return the value of a site.

        Raises:
            ArgumentError: If it has another shape than the site, or is not finite.
            ArgumentTypeError: If it is not a tensor of real numbers.
        """
        value = self.init_loc_fn(site)
        if value is None:
            return None
        name, shape = site["name"], tuple(site["fn"].shape())
        if not isinstance(value, Tensor) or value.is_complex():
            given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else kind_of(value)
            raise ArgumentTypeError(f"init_loc_fn: gives {given} for the site {name!r}; return a tensor {shape}.")
        if tuple(value.shape) != shape:
            raise ArgumentError(
                f"init_loc_fn: gives a value of shape {tuple(value.shape)} for the site {name!r}; return {shape}."
            )
        if not bool(torch.isfinite(value).all()):
            raise ArgumentError(f"init_loc_fn: gives values for the site {name!r} that are NaN or infinite.")
        return value


def refuse_sampled_layers(model: Any) -> None:
    """Raise if weights of layers are Pyro sites of their own: ``PyroModule[nn.Linear]`` with ``PyroSample`` weights.

    Such layers take one set of weights at a time, where guides and predictions draw many at once.

    Args:
        model: A model; anything that is no module is accepted.

    Raises:
        ArgumentTypeError: If a layer of torch has a weight that is a ``PyroSample``.

    Example:
        >>> from pyro.nn import PyroModule
        >>> refuse_sampled_layers(PyroModule[torch.nn.Linear](2, 1))
    """
    for name, part in model.named_modules() if isinstance(model, nn.Module) else ():
        sampled = [str(key) for key in vars(part).get("_pyro_samples", ())]
        if sampled and any(_is_layer(kind) for kind in type(part).__mro__):
            raise ArgumentTypeError(
                f"model: its layer {name or type(part).__name__!r} has weights {sampled} that are a PyroSample, and "
                "such a layer takes one draw at a time; pass BayesianModel(network, prior=..., likelihood=...) with "
                "the plain network, nn.Linear in place of PyroModule[nn.Linear]. AutoNormal of Pyro takes it as it is."
            )


def _is_layer(kind: type) -> bool:
    module = kind.__module__
    return module.startswith("torch.nn.modules.") and module not in ("torch.nn.modules.module", _CONTAINERS)


def detach_trace(trace: Trace) -> None:
    """Detach distributions and values of a trace that is kept, in place; those given to it stay as they are.

    What hangs in a graph of gradients, of learned prior scales for instance, cannot be copied. The model is not traced
    without gradients instead, since it may need them.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> scale = torch.ones((), requires_grad=True)
        >>> trace = pyro.poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 2.0 * scale))).get_trace()
        >>> detach_trace(trace)
        >>> trace.nodes["z"]["fn"].scale
        tensor(2.)
    """
    for node in nodes_of(trace).values():
        node.update({key: _detached(node[key]) for key in ("fn", "value") if key in node})


def _detached(value: Any, made: dict[int, Any] | None = None) -> Any:
    made = {} if made is None else made  # a transformation and its inverse know each other
    if isinstance(value, Tensor):
        return value.detach() if value.grad_fn is not None else value
    if type(value) in (list, tuple):
        return type(value)(_detached(part, made) for part in value)
    if not isinstance(value, torch.distributions.Distribution | torch.distributions.Transform):
        return value
    if id(value) not in made:
        made[id(value)] = copy.copy(value)
        vars(made[id(value)]).update({key: _detached(part, made) for key, part in vars(value).items()})
    return made[id(value)]
