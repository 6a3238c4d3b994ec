"""From a model to its conditional layers with their inducing points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError
from bayeshnet.inducing._find_layers import Conditional, NotApplicableError, find_layers
from bayeshnet.inducing.conditional_weights import NoisePrecision
from bayeshnet.inducing.flat_layout import FlatLayout
from bayeshnet.inducing.layers import InducingLayers, LayerPrior
from bayeshnet.inducing.placement import affordable_inducing, default_num_inducing, latent_noise, starting_points
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import has_network
from bayeshnet.sites.arguments import inputs_and_targets
from bayeshnet.sites.batch_sizes import default_batch_size
from bayeshnet.sites.latents import LatentSite
from bayeshnet.sites.prior import PriorStart

__all__ = ["FEWEST", "Conditional", "ConditionalPlan", "plan_or_reason"]

FEWEST = 4
"""Number of inducing points below which a large network has no conditional layer by default."""


@dataclass(frozen=True)
class ConditionalPlan:
    """What a guide with conditional layers is made of.

    Attributes:
        inducing: The layers with their inducing points.
        layout: Where everything lies in the vector of all latents.
        names: Dotted names of the conditional weights.
        num_rows: Number of rows that the inducing points were chosen from.
        log_precision: From the latents that are no weights to the logarithm of the observations' precision, if it is
            inferred.
        weighs_proposals: Whether the inducing points tell how well a draw of the other layers fits.
        step_rows: Number of rows of a step by whose cost the number of inducing points was chosen; None if it was not.

    Example:
        >>> from bayeshnet import AutoHypernet, likelihoods
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> guide = AutoHypernet(model, example=(torch.randn(20, 2), torch.randn(20)))
        >>> layout = FlatLayout(((1, 2), (1,)), 0, ((0, 1),))
        >>> ConditionalPlan(guide.inducing, layout, ("weight",), 20, None, True).inducing.num_inducing
        20
    """

    inducing: InducingLayers
    layout: FlatLayout
    names: tuple[str, ...]
    num_rows: int
    log_precision: NoisePrecision | None
    weighs_proposals: bool
    step_rows: int | None = None


def plan_or_reason(
    model: Callable[..., Any],
    sites: Sequence[LatentSite],
    start: PriorStart,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    conditional: Conditional,
    num_inducing: int | None,
    large: bool = False,
) -> tuple[ConditionalPlan | None, str | None]:
    """Find the conditional layers of a model and place their inducing points, or say why ``"auto"`` finds none.

    Args:
        model: The Pyro model.
        sites: Its latent sites.
        start: Centre and spread of the prior.
        args: The model's arguments: inputs and targets.
        kwargs: Its keyword arguments.
        conditional: Which layers.
        num_inducing: Number of inducing points; by the number of rows by default.
        large: Whether the default is bounded by the cost of a step, too; ``"auto"`` then finds no layer where that
            leaves fewer than :data:`FEWEST` points.

    Returns:
        The plan and None, or None and the reason.

    Raises:
        ArgumentError: If layers are asked for that cannot be conditional, or inducing points without layers, or a name
            is not that of a linear layer, or a number is out of range.
        ArgumentTypeError: If ``num_inducing`` is not an integer.

    Example:
        >>> plan_or_reason(print, [], None, (), {}, conditional="auto", num_inducing=None)
        (None, 'the model is no BayesianModel')
    """
    if conditional is None:
        if num_inducing is not None:
            raise ArgumentError(
                f"num_inducing: is {num_inducing}, and no layer is conditional; leave it out, or pass "
                "conditional='last'."
            )
        return None, None
    try:
        checked = _applicable(model)
        x, y = _data(args, kwargs)
        num, step_rows = _number(checked, len(x), num_inducing, conditional, large=large)
        if checked.likelihood.pseudo_targets(y[:1], 2) is None:
            kind = type(checked.likelihood).__name__
            raise NotApplicableError(f"a {kind} likelihood has no Gaussian pseudo-targets for such outputs and targets")
        net, layers = find_layers(checked, x, conditional)
        layout, priors = _layout(checked, sites, start, layers)
    except NotApplicableError as error:
        if conditional == "auto":
            return None, str(error)
        raise ArgumentError(
            f"conditional: {conditional!r} is not possible here ({error}); pass conditional=None or 'auto'."
        ) from None
    rows = max(len(x), checked.dataset_size or 0)
    inputs, targets, log_precision = starting_points(checked, x, y, num, rows)
    hidden = [
        (torch.randn(num, prior.loc.shape[0], dtype=torch.float64), torch.full((num,), math.log(rows / num)))
        for prior in priors[:-1]
    ]
    inducing = InducingLayers(
        net,
        priors,
        inputs,
        [*(t for t, _ in hidden), targets],
        [*(p for _, p in hidden), log_precision],
        logit_differences=checked.likelihood.logit_differences,
    )
    names = tuple(checked.net.param_names[weight] for weight, _ in layers)
    # With noise that is inferred, but not followed by the precisions, nothing would tell a fit from a large noise.
    name = latent_noise(checked)
    noise = None if name is None else NoisePrecision(sites[-1].shape, sites[-1].transform, name == "precision")
    weighs = noise is not None or not checked.likelihood.priors()
    return ConditionalPlan(inducing, layout, names, len(x), noise, weighs, step_rows), None


def _number(
    model: BayesianModel, given_rows: int, asked: int | None, conditional: Conditional, *, large: bool
) -> tuple[int, int | None]:
    """Number of inducing points for an example of so many rows, and the rows of a step if their cost decided."""
    if asked is not None:
        require_count("num_inducing", asked, advice=", or None")
        return asked, None
    num = default_num_inducing(max(given_rows, model.dataset_size or 0))
    if not large:
        return num, None
    step = default_batch_size(given_rows, model.dataset_size)
    affordable = affordable_inducing(step)
    if affordable < FEWEST and conditional == "auto":
        raise NotApplicableError(
            f"a tenth of the cost of a step of {step} rows is {affordable} inducing point{'s' * (affordable != 1)}, "
            f"fewer than {FEWEST}; num_inducing={FEWEST} with conditional='last' has them all the same"
        )
    return (num, None) if num <= affordable else (max(1, affordable), step)


def _applicable(model: Any) -> BayesianModel:
    """Return the model if it is one of a network."""
    if not has_network(model):
        raise NotApplicableError("the model is no BayesianModel")
    return model


def _data(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    x, y = inputs_and_targets(args, kwargs)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise NotApplicableError("the network's input is not one floating-point tensor [B, ...]")
    if not isinstance(y, Tensor):
        raise NotApplicableError("the example has no targets")
    return x, y


def _layout(
    model: BayesianModel, sites: Sequence[LatentSite], start: PriorStart, layers: list[tuple[int, int | None]]
) -> tuple[FlatLayout, list[LayerPrior]]:
    """Return where everything lies in the vector of all latents, and the priors of the conditional layers."""
    latents = [site.name for site in sites if site.name.startswith("prior.")]
    if latents and model.prior_latents():
        raise NotApplicableError(f"the prior has latents of its own, {', '.join(latents[:3])}: no constant scales")
    expected = list(model.weight_priors())
    # The vector has to begin with the network's weights in the order of its table.
    if [site.name for site in sites[: len(expected)]] != expected:
        raise NotApplicableError("some weights are observed or hidden")
    shapes = tuple(tuple(shape) for shape in model.net.param_shapes)
    rest = sum(site.numel for site in sites) - sum(math.prod(shape) for shape in shapes)
    layout = FlatLayout(shapes, rest, tuple(layers))
    return layout, [_layer_prior(layout, start, weight, bias) for weight, bias in layers]


def _layer_prior(layout: FlatLayout, start: PriorStart, weight: int, bias: int | None) -> LayerPrior:
    parts = [i for i in (weight, bias) if i is not None]
    gaussian = start.gaussian.split(layout.sizes)
    if not all(bool(gaussian[i].all()) for i in parts):
        raise NotApplicableError("the layer's prior is not Gaussian with a known scale")

    def joint(flat: Tensor) -> Tensor:
        split = flat.split(layout.sizes)
        tensors = [split[i].reshape(layout.shapes[i]) for i in parts]
        return torch.cat([tensors[0], *(tensor.unsqueeze(-1) for tensor in tensors[1:])], dim=-1)

    return LayerPrior(weight, bias, joint(start.loc), joint(start.scale))
