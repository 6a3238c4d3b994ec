"""Posterior predictions of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro.infer import Predictive
from torch import Tensor

from bayeshnet.checks import require_count, require_flag
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.guides.base import with_model
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.sites.arguments import require_model_and_guide
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread

__all__ = ["posterior_draws", "predict"]


@torch.no_grad()
def predict(
    model: BayesianModel,
    guide: Callable[..., Any] | Mapping[str, Tensor],
    x: Any,
    num_samples: int = 500,
    *,
    batch_size: int | None = None,
    parallel: bool = True,
) -> Prediction:
    """Evaluate many sampled networks on inputs.

    The same networks are used for all inputs, so ``draws[s]`` is one function. The model is put into evaluation mode
    for the call; afterwards each of its submodules is in the mode it was in. Calls in several threads wait for each
    other.

    For importance-corrected predictions give draws resampled by their weights in place of the guide:
    ``predict(model, importance_sample(model, guide, (x_train, y_train), 5000).resample(500), x)``; see
    :func:`~bayeshnet.importance_sample`.

    Args:
        model: The Bayesian network. For another Pyro model use ``pyro.infer.Predictive``.
        guide: A fitted guide, any of Pyro's; or draws ``[S, *shape]`` by site, from NUTS for instance.
        x: Inputs ``[B, ...]``, or a tuple of the network's arguments.
        num_samples: Number S of sampled networks; draws given as ``guide`` are all used.
        batch_size: Inputs evaluated at once, to bound memory; all by default.
        parallel: Draw the guide's samples in one vectorised call; False for a guide that cannot be vectorised.

    Returns:
        The prediction: draws, mean, std, intervals, epistemic and aleatoric parts.

    Raises:
        TypeError: If ``model`` is not a :class:`~bayeshnet.BayesianModel`, or an argument is of another type.
        ValueError: If a number is not positive, draws lack a site or have another shape than the model's, or inputs,
            draws or outputs are NaN.
        RuntimeError: If another thread is in a fit.

    Example:
        >>> from bayeshnet import AutoHypernet, likelihoods
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernet(model, example=(x, y))
        >>> predict(model, guide, x, num_samples=10).draws.shape
        torch.Size([10, 8])
    """
    if not isinstance(model, BayesianModel):
        raise ArgumentTypeError(
            f"model: is a {type(model).__name__}; predict evaluates a BayesianModel. For any other Pyro model use "
            "pyro.infer.Predictive(model, guide=guide, num_samples=..., parallel=True)."
        )
    if not isinstance(guide, Mapping):
        if not callable(guide):
            raise ArgumentTypeError(
                f"guide: is a {type(guide).__name__}; pass a fitted guide, or draws [S, *shape] by site in a dict."
            )
        require_model_and_guide(model, guide)
    _check_inputs(x)
    if isinstance(num_samples, Tensor) and num_samples.dim():
        raise ArgumentTypeError("num_samples: is a tensor; predict takes no targets, predict(model, guide, x).")
    require_count("num_samples", num_samples)
    require_flag("parallel", parallel)
    if batch_size is not None:
        require_count("batch_size", batch_size, advice=", or None for all at once")
    with one_thread("predict"), evaluating(model):
        draws = (
            guide if isinstance(guide, Mapping) else posterior_draws(model, guide, x, num_samples, parallel=parallel)
        )
        draws = _checked_draws(model, draws)
        parts = [model.conditional(part, draws) for part in _parts(x, batch_size)]
        f = torch.cat([part[0] for part in parts], dim=1)
        conditional = parts[0][1] if len(parts) == 1 else model.conditional_of(f, draws)
        return Prediction(f, conditional.sample(), conditional)


def posterior_draws(
    model: BayesianModel, guide: Callable[..., Any], x: Any, num_samples: int, *, parallel: bool = True
) -> dict[str, Tensor]:
    """Draws of every latent site from any guide: ``[num_samples, *shape]`` by site name."""
    own = getattr(guide, "sample_posterior", None)
    with with_model(guide, model), one_thread("posterior_draws"):
        if own is not None:
            return own(num_samples)
        sites = tuple(model.latent_shapes)
        drawn = Predictive(guide, num_samples=num_samples, return_sites=sites, parallel=parallel)(x)
    return _checked_draws(model, drawn)


def _checked_draws(model: BayesianModel, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shapes = model.latent_shapes
    missing = [name for name in shapes if name not in draws]
    if missing:
        raise ArgumentError(
            f"guide: gives no draws of the model's sites {missing}; it gives {list(draws)}. Was it made for this model?"
        )
    found = {name: _checked_draw(name, draws[name], tuple(shape)) for name, shape in shapes.items()}
    numbers = {name: len(value) for name, value in found.items()}
    if len(set(numbers.values())) > 1:
        raise ArgumentError(f"guide: gives different numbers of draws, {numbers}; pass as many of each site.")
    return found


def _checked_draw(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """Draws ``[S, *shape]`` of a site; dimensions of size 1, the place of plates, may be between."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"guide: gives a {type(value).__name__} for {name!r}; pass draws as a tensor.")
    given, start = tuple(value.shape), value.dim() - len(shape)
    if start < 1 or given[start:] != shape or any(size != 1 for size in given[1:start]) or not len(value):
        wanted = ", ".join(["S", *map(str, shape)])
        chains = start == 2 and given[start:] == shape
        advice = "Draws of several chains: take get_samples() without group_by_chain." if chains else ""
        raise ArgumentError(
            f"guide: its draws of {name!r} have shape {given}; the model needs [{wanted}], S draws. "
            f"{advice or 'Was it made for this model?'}"
        )
    return value.reshape((len(value), *shape))


def _check_inputs(x: Any) -> None:
    first: Any = x[0] if isinstance(x, tuple) and x else x
    if not hasattr(first, "shape"):
        what = f"is a {type(x).__name__}" + ("" if first is x else f" that begins with a {type(first).__name__}")
        raise ArgumentTypeError(
            f"x: {what}; pass a tensor of inputs [B, ...], or a tuple of the network's arguments. Of a DataLoader take "
            "all inputs, torch.cat([x for x, _ in loader])."
        )
    if not len(first.shape):
        raise ArgumentError("x: is a single number; pass a tensor of inputs [B, ...].")


def _parts(x: Any, batch_size: int | None) -> Iterator[Any]:
    first = x[0] if isinstance(x, tuple) else x
    rows = first.shape[0]
    if batch_size is None or batch_size >= rows:
        yield x
        return
    if isinstance(first, Tensor) and first.layout != torch.strided:
        raise ArgumentTypeError(
            f"x: is a tensor of layout {first.layout}, which cannot be cut; pass x.to_dense(), or batch_size=None."
        )
    for start in range(0, rows, batch_size):
        chosen = slice(start, start + batch_size)
        if isinstance(x, tuple):
            yield tuple(arg[chosen] if isinstance(arg, Tensor) and arg.shape[:1] == (rows,) else arg for arg in x)
        else:
            yield x[chosen]
