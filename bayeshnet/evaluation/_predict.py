"""Posterior predictions of a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.checks import kind_of, require_count, require_flag
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation._by_site import predict_sites
from bayeshnet.evaluation._rows import checked_row_data, spanned, taken_inputs
from bayeshnet.evaluation._seeds import base_seed, check_generator, seeded
from bayeshnet.evaluation._sources import Parts, Source, check_source, draws_of, like_of
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import is_predictive
from bayeshnet.models.forms import leaves, num_rows, rows_of
from bayeshnet.models.prepared import with_statistics
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread

__all__ = ["check_model", "predict", "tiles"]

# Observations are drawn for so many numbers of networks times rows at once, each lot with a seed of its own.
_TILE = 2**16


@overload
def predict(
    model: BayesianModel,
    guide: Source,
    x: Any,
    num_samples: int = 500,
    *,
    batch_size: int | None = None,
    parallel: bool = True,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
    noise: Any = None,
    exposure: Any = None,
    sites: None = None,
) -> Prediction: ...
@overload
def predict(
    model: Any,
    guide: Any,
    x: Any,
    num_samples: int = 500,
    *,
    parallel: bool = True,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
    sites: Sequence[str],
) -> dict[str, Prediction]: ...
def predict(
    model: Any,
    guide: Any,
    x: Any,
    num_samples: int = 500,
    *,
    batch_size: int | None = None,
    parallel: bool = True,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
    noise: Any = None,
    exposure: Any = None,
    sites: Sequence[str] | None = None,
) -> Prediction | dict[str, Prediction]:
    """Evaluate many sampled networks on inputs.

    The same networks are used for all inputs, so ``draws[s]`` is one function. The model is put into evaluation mode
    for the call; afterwards each of its submodules is in the mode it was in. Calls in several threads wait for each
    other. All draws are kept; :func:`~bayeshnet.predict_summary` needs memory for one number per row only.

    For importance-corrected predictions give draws resampled by their weights in place of the guide:
    ``predict(model, importance_sample(model, guide, (x_train, y_train), 5000).resample(500), x)``; see
    :func:`~bayeshnet.importance_sample`.

    Args:
        model: The Bayesian network; with ``sites`` any Pyro model.
        guide: A fitted guide, any of Pyro's; draws ``[S, *shape]`` by site, from NUTS for instance; Pyro's ``MCMC``
            after its run; or an ensemble, a list of trained networks like the one of the model.
        x: Inputs ``[B, ...]``, or a tuple of the network's arguments; with ``sites`` a tuple of the model's arguments.
        num_samples: Number S of sampled networks; draws given as ``guide`` are all used.
        batch_size: Inputs evaluated at once, to bound memory; all by default.
        parallel: Draw the guide's samples in one vectorised call; False for a guide that cannot be vectorised.
        generator: Where random numbers come from. With one of the same seed the numbers are the same whatever the
            ``batch_size``, and the global generator stays as it is; it is used without.
        differentiable: Keep the graph from the inputs to outputs and conditional distribution, for gradients with
            respect to ``x`` of what follows from them; the draws are constants.
        noise: Known noise of each row ``[B]`` or ``[B, *target]``, for likelihoods with ``per_row=True``.
        exposure: Exposure of each row, likewise, for likelihoods with ``exposure=True``.
        sites: Names of sites of a Pyro model whose distributions are wanted, such as ``("obs",)``. Each is then
            predicted by its distribution given the guide's draws.

    Returns:
        The prediction: draws, mean, std, quantiles, epistemic and aleatoric parts; with ``sites`` one for each.

    Raises:
        ArgumentTypeError: If ``model`` is not a :class:`~bayeshnet.BayesianModel`, or an argument is of another type.
        ArgumentError: If a number is not positive, the draws do not fit into memory, draws lack a site or have another
            shape than the model's, or inputs, draws or outputs are NaN.
        UsageError: If another thread is in a fit.

    Example:
        >>> from bayeshnet import AutoHypernet, likelihoods
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernet(model, example=(x, y))
        >>> predict(model, guide, x, num_samples=10).draws.shape
        torch.Size([10, 8])
        >>> inputs = x.clone().requires_grad_()
        >>> predict(model, guide, inputs, 10, differentiable=True).mean.sum().backward()
        >>> inputs.grad.shape
        torch.Size([8, 2])
    """
    require_flag("differentiable", differentiable)
    require_flag("parallel", parallel)
    check_generator(generator)
    with torch.set_grad_enabled(differentiable):
        if sites is not None:
            if batch_size is not None:
                raise ArgumentError("batch_size: is for networks; with sites pass the arguments in parts.")
            for name, value in (("noise", noise), ("exposure", exposure)):
                if value is not None:
                    raise ArgumentError(f"{name}: is for networks; with sites it is one of the model's arguments, x.")
            return predict_sites(model, guide, x, num_samples, sites=sites, parallel=parallel, generator=generator)
        check_model(model)
        x = taken_inputs(model, x)
        _check_arguments(model, guide, x, num_samples, batch_size)
        of_rows = checked_row_data(num_rows(x), like_of(model).device, noise=noise, exposure=exposure)
        with one_thread("predict"), evaluating(model):
            if generator is None:
                draws, seed, first = draws_of(model, guide, x, num_samples, parallel), 0, 0
            else:
                seed = base_seed(generator)
                parts = Parts(model, guide, x, num_samples, seed, parallel, most=2**62)
                draws, first = parts(0), parts.num_places
            if batch_size is None or batch_size >= num_rows(x):
                f, conditional = model.conditional(x, draws, **of_rows)
            else:
                whole = with_statistics(model, x, draws)
                parts_of_f = [
                    model.conditional(rows_of(x, span), whole, **spanned(of_rows, span))[0]
                    for span in _spans(num_rows(x), batch_size)
                ]
                f = torch.cat(parts_of_f, dim=1)
                conditional = model.conditional_of(f, draws, **of_rows)
            if generator is None:
                return Prediction(f, drawn_from(conditional), conditional)
            samples: list[Tensor] = []
            for place, span in enumerate(tiles(f.shape[1], len(f))):
                with seeded(seed, first + place, f.device):
                    samples.append(drawn_from(model.conditional_of(f[:, span], draws, **spanned(of_rows, span))))
            return Prediction(f, torch.cat(samples, dim=1), conditional)


def drawn_from(conditional: TorchDistributionMixin) -> Tensor:
    """A draw, with the gradients that it has."""
    return conditional.rsample() if torch.is_grad_enabled() and conditional.has_rsample else conditional.sample()


def tile_rows(num: int) -> int:
    """Rows whose observations are drawn together, for so many networks; whatever the batches are.

    Example:
        >>> tile_rows(1000)
        65
    """
    return max(1, min(_TILE // max(num, 1), 1024))


def tiles(rows: int, num: int) -> Iterator[slice]:
    """Spans of :func:`tile_rows` rows.

    Example:
        >>> list(tiles(100, 1000))
        [slice(0, 65, None), slice(65, 100, None)]
    """
    size = tile_rows(num)
    for i in range(math.ceil(rows / size)):
        yield slice(i * size, min((i + 1) * size, rows))


def check_model(model: Any) -> None:
    """Raise unless a model gives the distribution of observations for draws of its latents.

    Raises:
        ArgumentTypeError: If it does not.
    """
    if not is_predictive(model):
        raise ArgumentTypeError(
            f"model: is {kind_of(model)}; pass a BayesianModel. For any other Pyro model name the sites to predict, "
            "predict(model, guide, args, sites=('obs',)), or use pyro.infer.Predictive."
        )


def _check_arguments(model: Any, guide: Any, x: Any, num_samples: Any, batch_size: Any) -> None:
    check_source(model, guide)
    first: Any = next((part for _, part in leaves(x)), x)
    if not hasattr(first, "shape"):
        begin: Any = x[0] if isinstance(x, tuple) and x else x
        what = f"is {kind_of(x)}" + ("" if begin is x else f" that begins with {kind_of(begin)}")
        raise ArgumentTypeError(
            f"x: {what}; pass a tensor of inputs [B, ...], or a tuple of the network's arguments. A DataLoader is what "
            "predict_summary takes; for all draws take all inputs, torch.cat([x for x, _ in loader])."
        )
    if not len(first.shape):
        raise ArgumentError("x: is a single number; pass a tensor of inputs [B, ...].")
    if isinstance(num_samples, Tensor) and num_samples.dim():
        raise ArgumentTypeError("num_samples: is a tensor; pass a number: predict(model, guide, x) takes no targets.")
    require_count("num_samples", num_samples)
    if batch_size is not None:
        require_count("batch_size", batch_size, advice=", or None for all at once")


def _spans(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, start + size)
