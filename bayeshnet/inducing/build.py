"""Which layers of a model's network can be drawn conditionally, and where their inducing points start."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError
from bayeshnet.inducing.conditional_weights import FlatLayout
from bayeshnet.inducing.layers import HeadNet, InducingLayers, LayerPrior
from bayeshnet.layers.plain_modules import is_plain
from bayeshnet.mnets.batched import batched_forward
from bayeshnet.mnets.chain import Chain, LinearStep
from bayeshnet.mnets.module_mainnet import ModuleMainNet
from bayeshnet.models import likelihoods
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import has_network
from bayeshnet.sites.arguments import check_rows, inputs_and_targets
from bayeshnet.sites.kept_state import restored
from bayeshnet.sites.latents import LatentSite, PriorStart
from bayeshnet.sites.modes import evaluating

__all__ = ["Conditional", "ConditionalPlan", "default_num_inducing", "place_inducing", "plan_or_reason"]

Conditional: TypeAlias = 'Literal["auto", "last", "all"] | Sequence[str] | None'
"""Which layers are conditional: by choice, the last, all, those of these parameter names, or none."""

_LOGIT = 2.0
_LOGIT_WEIGHT = 0.25


class NotApplicableError(Exception):
    """Why a model has no conditional layers; the guide then falls back or raises."""


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
        ranks_candidates: Whether the inducing points tell how well a draw of the other layers fits.
    """

    inducing: InducingLayers
    layout: FlatLayout
    names: tuple[str, ...]
    num_rows: int
    log_precision: NoiseFactor | None
    ranks_candidates: bool


@dataclass(frozen=True, slots=True)
class NoiseFactor:
    """From the latent noise of a likelihood to the logarithm of its precision.

    Attributes:
        site: The likelihood's only latent, a number; the last of the model.
        is_precision: Whether it is the precision, or the standard deviation.
    """

    site: LatentSite
    is_precision: bool

    def __call__(self, rest: Tensor) -> Tensor:
        """``[S]``, of unconstrained latents ``[S, 1]``."""
        value = self.site.constrain(rest.reshape(-1, *self.site.shape)).reshape(-1).double()
        return value.log() if self.is_precision else -2.0 * value.log()


def default_num_inducing(num_rows: int) -> int:
    """Number of inducing points for a data set of so many rows: all up to 40, then as the square root.

    Example:
        >>> [default_num_inducing(n) for n in (20, 40, 300, 1000, 10_000)]
        [20, 40, 104, 190, 600]
    """
    return min(num_rows, max(40, math.ceil(6 * math.sqrt(num_rows))))


def plan_or_reason(
    model: Callable[..., Any],
    sites: Sequence[LatentSite],
    start: PriorStart,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    conditional: Conditional,
    num_inducing: int | None,
) -> tuple[ConditionalPlan | None, str | None]:
    """The conditional layers as in :func:`plan`, or why there are none where ``"auto"`` finds none.

    Raises:
        ValueError: If layers are asked for that cannot be conditional, or inducing points without layers.
    """
    if conditional is None:
        if num_inducing is not None:
            raise ArgumentError("num_inducing: was given, but no layer is conditional; see `conditional`.")
        return None, None
    try:
        return plan(model, sites, start, args, kwargs, conditional=conditional, num_inducing=num_inducing), None
    except NotApplicableError as error:
        if conditional == "auto":
            return None, str(error)
        raise ArgumentError(
            f"conditional: {conditional!r} is not possible here ({error}); pass conditional=None or 'auto'."
        ) from None


def plan(
    model: Callable[..., Any],
    sites: Sequence[LatentSite],
    start: PriorStart,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    conditional: Conditional,
    num_inducing: int | None,
) -> ConditionalPlan:
    """Find the conditional layers of a model, and place their inducing points.

    Args:
        model: The Pyro model.
        sites: Its latent sites.
        start: Centre and spread of the prior.
        args: The model's arguments: inputs and targets.
        kwargs: Its keyword arguments.
        conditional: Which layers.
        num_inducing: Number of inducing points; by the number of rows by default.

    Raises:
        NotApplicableError: If there are none; it says why.
        ValueError: If a name is not that of a linear layer, or a number is out of range.
    """
    if not has_network(model):
        raise NotApplicableError("the model is no BayesianModel")
    if not isinstance(model.likelihood, likelihoods.Normal | likelihoods.Categorical):
        raise NotApplicableError(f"a {type(model.likelihood).__name__} likelihood has no Gaussian pseudo-targets")
    x, y = _data(args, kwargs)
    net, steps = _network(model, x)
    layers = _choose(model, net, steps, conditional)
    if isinstance(net, Chain):
        _check_tied(model.net.param_names, net, layers)
    sizes = [math.prod(shape) for shape in model.net.param_shapes]
    total = sum(site.numel for site in sites)
    _check_order(model, sites)
    shapes = tuple(tuple(shape) for shape in model.net.param_shapes)
    layout = FlatLayout(shapes, total - sum(sizes), tuple(layers))
    priors = [_layer_prior(layout, start, weight, bias) for weight, bias in layers]
    rows = max(len(x), model.dataset_size or 0)
    num = default_num_inducing(rows) if num_inducing is None else num_inducing
    require_count("num_inducing", num, advice=", or None")
    inputs, targets, log_precision = _points(model, x, y, num, rows)
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
        contrasts=isinstance(model.likelihood, likelihoods.Categorical),
    )
    names = tuple(model.net.param_names[weight] for weight, _ in layers)
    # With noise that is inferred, but not followed by the precisions, nothing would tell a fit from a large noise.
    name = _latent_noise(model)
    factor = None if name is None else NoiseFactor(sites[-1], name == "precision")
    return ConditionalPlan(inducing, layout, names, len(x), factor, factor is not None or not model.likelihood.priors())


@torch.no_grad()
def place_inducing(model: BayesianModel, inducing: InducingLayers, x: Tensor, y: Tensor, rows: int) -> None:
    """Move the inducing points to randomly chosen rows of these data, in place."""
    check_rows(model, x, y)
    inputs, targets, log_precision = _points(model, x, y, inducing.num_inducing, rows)
    last: Any = inducing.points[-1]
    observed = inducing.observed_part(len(inducing.points) - 1, targets)
    with restored([inducing.inputs, last.targets, last.log_precision], on_error=True):
        inducing.inputs.copy_(inputs)
        last.targets.copy_(observed)
        last.log_precision.copy_(log_precision)


# ---------------------------------------------------------------------- data


def _data(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    x, y = inputs_and_targets(args, kwargs)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise NotApplicableError("the network's input is not one floating-point tensor [B, ...]")
    if not isinstance(y, Tensor):
        raise NotApplicableError("the example has no targets")
    return x, y


def _points(model: BayesianModel, x: Tensor, y: Tensor, num: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pseudo-inputs at random rows, pseudo-targets at their targets, precisions worth all rows together."""
    chosen = torch.randperm(len(x))[:num]
    if len(chosen) < num:
        chosen = torch.cat([chosen, torch.randint(len(x), (num - len(chosen),))])
    labels = y[chosen.to(y.device)]
    if isinstance(model.likelihood, likelihoods.Categorical):
        classes = _num_outputs(model)
        targets = _LOGIT * (2.0 * nn.functional.one_hot(labels.long(), classes).double() - 1.0)
        weight = _LOGIT_WEIGHT * rows / num
        return x[chosen.to(x.device)], targets, torch.full((num,), math.log(weight), dtype=torch.float64)
    targets = labels.double().reshape(num, -1)
    noise = _noise(model, y)
    start = InducingLayers.start_precision(rows, num, noise)
    return x[chosen.to(x.device)], targets, torch.full((num,), start, dtype=torch.float64)


def _num_outputs(model: BayesianModel) -> int:
    weights = [record for record in model.net.param_table if record.name == "weight"]
    return weights[-1].shape[0]


def _latent_noise(model: BayesianModel) -> str | None:
    """Name of the likelihood's only latent, if that is one number: the scale or precision of the noise."""
    latents = model.likelihood.priors()
    name = next(iter(latents), None)
    return name if len(latents) == 1 and name is not None and latents[name].event_shape.numel() == 1 else None


def _noise(model: BayesianModel, y: Tensor) -> float:
    """Standard deviation of the observation noise: the known one, or a start for one that is inferred."""
    if _latent_noise(model) is not None:
        return 1.0  # a draw of the noise has its say later
    likelihood: Any = model.likelihood
    spread = float(y.double().std()) if y.numel() > 1 else 1.0
    if not likelihood.priors():
        return float(likelihood.log_scale.detach().exp().mean())
    name, prior = next(iter(likelihood.priors().items()))
    with torch.no_grad():
        middle = float(torch.median(prior.sample((101,)).double()))
    scale = middle if name == "scale" else middle**-0.5
    return min(max(scale, 1e-3 * spread), 0.3 * spread) if spread > 0 else scale


# ---------------------------------------------------------------------- layers


def _network(model: BayesianModel, x: Tensor) -> tuple[Chain | HeadNet, list[tuple[int, int | None]]]:
    """The network in a form whose layers can be drawn one by one, and its linear layers from input to output."""
    chain = model.net.as_chain() if hasattr(model.net, "as_chain") else None
    if chain is not None:
        last = [step for step in chain.steps if not isinstance(step, nn.Dropout | nn.Identity)][-1]
        if not isinstance(last, LinearStep):
            raise NotApplicableError("the network does not end in a linear layer")
    if chain is not None and (x.dim() == 2 or not isinstance(chain.steps[0], LinearStep)):
        return chain, [(step.weight, step.bias) for step in chain.steps if isinstance(step, LinearStep)]
    _check_last_layer(model)
    head = _head_of(model, x)
    if head is None and chain is not None:
        raise NotApplicableError(f"the last linear layer has several outputs for a row of shape {tuple(x.shape[1:])}")
    if head is None:
        raise NotApplicableError("the network does not end in a linear layer")
    return head, [(head.weight, head.bias)]


def _check_last_layer(model: BayesianModel) -> None:
    """Raise if the last linear layer is not simply that, whatever one set of weights shows."""
    net = model.net
    frozen: Sequence[str] = getattr(net, "frozen_names", ())
    if not isinstance(net, ModuleMainNet):
        if frozen:
            raise NotApplicableError(f"of a main network with frozen parameters, {list(frozen)}, no layer is known")
        return
    linears = [(name, module) for name, module in net.module.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        return
    name, last = linears[-1]
    parts = [f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")]
    tied = [net.tied_names[part] for part in parts if part in net.tied_names]
    if tied:
        raise NotApplicableError(f"{tied[0]} is used at several places of the network (tied)")
    fixed = [part for part in parts if part in frozen]
    if fixed:
        raise NotApplicableError(f"{' and '.join(fixed)} of the last linear layer cannot be drawn: frozen")
    if type(last) is nn.Linear and not is_plain(last, nn.Linear.forward):
        raise NotApplicableError(f"the last linear layer, {name!r}, has hooks or a forward of its own")


def _check_tied(names: Sequence[str], chain: Chain, layers: Sequence[tuple[int, int | None]]) -> None:
    """Raise if the weights of a conditional layer have another place: its features would depend on them."""
    used = [i for step in chain.steps if isinstance(step, LinearStep) for i in (step.weight, step.bias)]
    tied = [names[i] for layer in layers for i in layer if i is not None and used.count(i) > 1]
    if tied:
        raise NotApplicableError(f"{tied[0]} is used at several places of the network (tied)")


def _head_of(model: BayesianModel, x: Tensor) -> HeadNet | None:
    """The network without its last linear layer, if that is the last thing it does."""
    net = model.net
    if not isinstance(net, ModuleMainNet):
        return None
    linears = [(name, module) for name, module in net.module.named_modules() if type(module) is nn.Linear]
    names = list(net.param_names)
    if not linears or f"{linears[-1][0]}.weight" not in names:
        return None
    name = linears[-1][0]
    weight = names.index(f"{name}.weight")
    bias = names.index(f"{name}.bias") if f"{name}.bias" in names else None
    body = copy.deepcopy(net)
    parent, _, key = name.rpartition(".")
    owner: nn.Module = body.module.get_submodule(parent) if parent else body.module
    if not key:
        return None
    setattr(owner, key, nn.Identity())
    example = [0.1 * torch.randn(2, *shape, dtype=x.dtype, device=x.device) for shape in net.param_shapes]
    rows = x[: min(3, len(x))]
    body.eval()
    try:
        with evaluating(net), torch.no_grad():
            features, whole = batched_forward(body, example, rows), batched_forward(net, example, rows)
            again = features @ example[weight].transpose(1, 2)
            again = again if bias is None else again + example[bias].unsqueeze(1)
            same = features.dim() == 3 and again.shape == whole.shape and bool(torch.allclose(again, whole, atol=1e-4))
    except (RuntimeError, ValueError, AttributeError):  # the body alone need not be a network
        return None
    return HeadNet(body, weight, bias) if same else None


def _choose(
    model: BayesianModel,
    net: Chain | HeadNet,
    layers: list[tuple[int, int | None]],
    conditional: Conditional,
) -> list[tuple[int, int | None]]:
    if conditional in ("auto", "last"):
        return layers[-1:]
    if conditional == "all":
        if isinstance(net, HeadNet):
            raise NotApplicableError(
                "only the last layer of a network that is no chain of linear layers can be drawn so"
            )
        return layers
    if not isinstance(conditional, Sequence) or isinstance(conditional, str):
        raise ArgumentError(
            f"conditional: is {conditional!r}; pass 'auto', 'last', 'all', None, or a list of names of linear layers."
        )
    names = model.net.param_names
    wanted = {str(name).removesuffix(".weight") for name in conditional}
    known = {names[weight].removesuffix(".weight"): (weight, bias) for weight, bias in layers}
    if not wanted or not wanted <= set(known):
        raise ArgumentError(
            f"conditional: {conditional!r} was given; pass 'auto', 'last', 'all', None, or names of linear layers "
            f"among {sorted(known)}."
        )
    chosen = [layer for name, layer in known.items() if name in wanted]
    if chosen[-1] != layers[-1]:
        raise ArgumentError(
            "conditional: the last layer has to be among the conditional ones; its pseudo-targets are the data's."
        )
    return chosen


def _check_order(model: BayesianModel, sites: Sequence[LatentSite]) -> None:
    """The vector of all latents has to begin with the network's weights in the order of its table."""
    expected = list(model.weight_priors())
    if [site.name for site in sites[: len(expected)]] != expected:
        raise NotApplicableError("some weights are observed or hidden")


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
