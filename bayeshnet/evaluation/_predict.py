"""Posterior predictions of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro.infer import Predictive
from torch import Size, Tensor

from bayeshnet.checks import kind_of, require_count, require_flag
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.guides.base import with_model
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import is_predictive
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
        ArgumentTypeError: If ``model`` is not a :class:`~bayeshnet.BayesianModel`, or an argument is of another type.
        ArgumentError: If a number is not positive, draws lack a site or have another shape than the model's, or inputs,
            draws or outputs are NaN.
        UsageError: If another thread is in a fit.

    Example:
        >>> from bayeshnet import AutoHypernet, likelihoods
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernet(model, example=(x, y))
        >>> predict(model, guide, x, num_samples=10).draws.shape
        torch.Size([10, 8])
    """
    _check_arguments(model, guide, x, num_samples, batch_size, parallel)
    with one_thread("predict"), evaluating(model):
        given = guide if isinstance(guide, Mapping) else _drawn(model, guide, x, num_samples, parallel)
        draws = _checked_draws(model, given)
        if batch_size is None or batch_size >= (x[0] if isinstance(x, tuple) else x).shape[0]:
            f, conditional = model.conditional(x, draws)
        else:
            f = torch.cat([model.conditional(part, draws)[0] for part in _parts(x, batch_size)], dim=1)
            conditional = model.conditional_of(f, draws)
        return Prediction(f, conditional.sample(), conditional)


def posterior_draws(
    model: BayesianModel, guide: Callable[..., Any], x: Any, num_samples: int, *, parallel: bool = True
) -> dict[str, Tensor]:
    """Draws of every latent site from any guide.

    Args:
        model: The Bayesian network.
        guide: A fitted guide, any of Pyro's.
        x: Inputs, for guides that are called with them.
        num_samples: Number S of draws.
        parallel: Make them in one vectorised call; False for a guide that cannot be vectorised.

    Returns:
        ``[S, *shape]`` by site name.

    Raises:
        ArgumentError: If the guide gives no draws of one of the model's sites, or of another shape.
        UsageError: If another thread is in a fit.

    Example:
        >>> from bayeshnet import AutoHypernet, likelihoods
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> draws = posterior_draws(model, AutoHypernet(model, example=(x, y)), x, 10)
        >>> {name: tuple(value.shape) for name, value in draws.items()}
        {'weight': (10, 1, 2), 'bias': (10, 1)}
    """
    with one_thread("posterior_draws"):
        return _checked_draws(model, _drawn(model, guide, x, num_samples, parallel))


def _drawn(model: BayesianModel, guide: Callable[..., Any], x: Any, num_samples: int, parallel: bool) -> Any:
    own = getattr(guide, "sample_posterior", None)
    with with_model(guide, model):
        if own is not None:
            return own(num_samples)
        sites = tuple(model.latent_shapes)
        return Predictive(guide, num_samples=num_samples, return_sites=sites, parallel=parallel)(x)


def _checked_draws(model: BayesianModel, draws: Mapping[str, Any]) -> dict[str, Tensor]:
    """Draws ``[S, *shape]`` of the model's sites; dimensions of size 1, the place of plates, may be between.

    Raises:
        ArgumentError: If a site is missing or has another shape, or numbers of draws differ.
        ArgumentTypeError: If draws are no tensor.
    """
    found: dict[str, Tensor] = {}
    shapes = model.latent_shapes
    num: int | None = None
    for name, shape in shapes.items():
        value = draws.get(name)
        if not isinstance(value, Tensor):
            raise _not_drawn(shapes, draws, name)
        given, start = value.shape, value.dim() - len(shape)
        if start < 1 or given[start:] != shape or not given[0] or value.numel() != given[0] * shape.numel():
            raise _wrong_shape(name, tuple(given), tuple(shape))
        num = given[0] if num is None else num
        if given[0] != num:
            numbers = {site: len(draws[site]) for site in shapes if site in draws}
            raise ArgumentError(f"guide: gives different numbers of draws, {numbers}; pass as many of each site.")
        found[name] = value.reshape((num, *shape))
    return found


def _not_drawn(shapes: Mapping[str, Size], draws: Mapping[str, Any], name: str) -> Exception:
    missing = [site for site in shapes if site not in draws]
    if not missing:
        return ArgumentTypeError(f"guide: gives {kind_of(draws[name])} for {name!r}; pass draws as a tensor.")
    return ArgumentError(
        f"guide: gives no draws of the model's sites {missing}, only of {list(draws)}; pass a guide made for this "
        "model."
    )


def _wrong_shape(name: str, given: tuple[int, ...], shape: tuple[int, ...]) -> ArgumentError:
    chains = len(given) == len(shape) + 2 and given[2:] == shape
    fix = (
        "S draws; of several chains take get_samples() without group_by_chain"
        if chains
        else "S draws of a guide made for this model"
    )
    wanted = ", ".join(["S", *map(str, shape)])
    return ArgumentError(f"guide: its draws of {name!r} have shape {given}; pass [{wanted}], {fix}.")


def _check_arguments(model: Any, guide: Any, x: Any, num_samples: Any, batch_size: Any, parallel: Any) -> None:
    if not is_predictive(model):
        raise ArgumentTypeError(
            f"model: is {kind_of(model)}; pass a BayesianModel. For any other Pyro model use "
            "pyro.infer.Predictive(model, guide=guide, num_samples=..., parallel=True)."
        )
    if not isinstance(guide, Mapping):
        if not callable(guide):
            raise ArgumentTypeError(
                f"guide: is {kind_of(guide)}; pass a fitted guide, or draws [S, *shape] by site in a dict."
            )
        require_model_and_guide(model, guide)
    first: Any = x[0] if isinstance(x, tuple) and x else x
    if not hasattr(first, "shape"):
        what = f"is {kind_of(x)}" + ("" if first is x else f" that begins with {kind_of(first)}")
        raise ArgumentTypeError(
            f"x: {what}; pass a tensor of inputs [B, ...], or a tuple of the network's arguments. Of a DataLoader take "
            "all inputs, torch.cat([x for x, _ in loader])."
        )
    if not len(first.shape):
        raise ArgumentError("x: is a single number; pass a tensor of inputs [B, ...].")
    if isinstance(num_samples, Tensor) and num_samples.dim():
        raise ArgumentTypeError("num_samples: is a tensor; pass a number: predict(model, guide, x) takes no targets.")
    require_count("num_samples", num_samples)
    require_flag("parallel", parallel)
    if batch_size is not None:
        require_count("batch_size", batch_size, advice=", or None for all at once")


def _parts(x: Any, batch_size: int) -> Iterator[Any]:
    first = x[0] if isinstance(x, tuple) else x
    rows = first.shape[0]
    if isinstance(first, Tensor) and first.layout != torch.strided:
        raise ArgumentTypeError(
            f"x: is a tensor of layout {first.layout}, which cannot be sliced; pass x.to_dense(), or batch_size=None."
        )
    for start in range(0, rows, batch_size):
        chosen = slice(start, start + batch_size)
        if isinstance(x, tuple):
            yield tuple(arg[chosen] if isinstance(arg, Tensor) and arg.shape[:1] == (rows,) else arg for arg in x)
        else:
            yield x[chosen]
