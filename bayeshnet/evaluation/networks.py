"""Sampled networks for use without this package: plain modules, or one module of many draws to export."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, Literal, TypeAlias

import pyro
import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.evaluation._conditional import kind_of_noise, mean_or_none
from bayeshnet.evaluation._rows import taken_inputs
from bayeshnet.evaluation._seeds import base_seed, check_generator
from bayeshnet.evaluation._sources import Parts, check_source, draws_of
from bayeshnet.mnets.plain_copy import plain_copy
from bayeshnet.models.capabilities import has_network
from bayeshnet.models.output import pick
from bayeshnet.models.target_shapes import drops_dimension
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread

__all__ = ["FrozenPosterior", "freeze", "sample_networks"]

Output: TypeAlias = Literal["functions", "mean", "network"]


@torch.no_grad()
def sample_networks(
    guide: Any, k: int, model: Any = None, *, generator: torch.Generator | None = None
) -> list[nn.Module]:
    """Draws of the posterior as plain modules, each like the network that the model was built from.

    They are copies with parameters of their own, in evaluation mode, and their ``state_dict`` fits the user's network.
    Frozen parameters and buffers are those of the model, and batch norm has the statistics of its draw. Of a model that
    standardises its data they take and give standardised numbers; :func:`freeze` includes the units.

    Args:
        guide: A fitted guide, draws, Pyro's ``MCMC``: any source of draws that :func:`~bayeshnet.predict` takes.
        k: Number of networks; of draws that are there already, the first ones.
        model: The Bayesian network; by default the one that the guide was built for.
        generator: Where random numbers come from; the global one without.

    Returns:
        The networks.

    Raises:
        ArgumentError: If there is no model, or ``k`` is not positive or more than there are draws.
        ArgumentTypeError: If an argument is of another type.
        UsageError: If the network is one that cannot be given back its weights, or has batch norm that goes by the
            batch, or is called more than once; or another thread is in a fit.

    Example:
        >>> from bayeshnet import AutoHypernet, BayesianModel, likelihoods
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> net = nn.Linear(2, 1)
        >>> guide = AutoHypernet(BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5)), example=(x, y))
        >>> networks = sample_networks(guide, 3)
        >>> len(networks), networks[0](x).shape
        (3, torch.Size([8, 1]))
        >>> net.load_state_dict(networks[0].state_dict())
        <All keys matched successfully>
    """
    model = _model_of(guide, model)
    return _networks(model, _draws(model, guide, k, generator), k)


@torch.no_grad()
def freeze(
    guide: Any,
    k: int,
    model: Any = None,
    *,
    output: Output = "functions",
    generator: torch.Generator | None = None,
) -> FrozenPosterior:
    """One plain module of k draws of the posterior, which needs no guide and can be exported.

    Args:
        guide: A fitted guide, draws, Pyro's ``MCMC``: any source of draws that :func:`~bayeshnet.predict` takes.
        k: Number of networks; of draws that are there already, the first ones.
        model: The Bayesian network; by default the one that the guide was built for.
        output: What the module returns: ``"functions"``, the mean of an observation under each network
            ``[k, B, ...]``, for labels class probabilities; ``"mean"``, the mean of those ``[B, ...]``; or
            ``"network"``, the outputs of each network as the likelihood takes them, standardised if the model
            standardises targets.
        generator: Where random numbers come from; the global one without.

    Returns:
        The module.

    Raises:
        ArgumentError: As for :func:`sample_networks`, or if ``output`` is something else.
        ArgumentTypeError: If an argument is of another type.
        UsageError: As for :func:`sample_networks`, or if the likelihood has no formula for its mean, or takes noise or
            exposure of each row and ``output`` is not ``"network"``.

    Example:
        >>> from bayeshnet import AutoHypernet, BayesianModel, likelihoods
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernet(model, example=(x, y))
        >>> module = freeze(guide, 20)
        >>> module(x).shape
        torch.Size([20, 8])
        >>> exported = torch.export.export(module, (x,))
        >>> torch.allclose(exported.module()(x), module(x))
        True
    """
    if output not in ("functions", "mean", "network"):
        raise ArgumentError(f"output: is {output!r}; pass 'functions', 'mean' or 'network'.")
    model = _model_of(guide, model)
    if output != "network" and model.likelihood.row_data:
        kind, needed = type(model.likelihood).__name__, " and ".join(model.likelihood.row_data)
        raise UsageError(
            f"output: {kind} takes {needed} of each row, and "
            "the module only gets inputs; freeze with output='network', or use predict."
        )
    draws = _draws(model, guide, k, generator)
    kept = {name: value[:k] for name, value in draws.items()}
    return FrozenPosterior(model, _networks(model, draws, k), kept, output).eval()


class FrozenPosterior(nn.Module):
    """k sampled networks as one module, see :func:`freeze`.

    Its parameters are those of the networks, so that ``state_dict`` and ``load_state_dict`` move them to another one of
    the same model and k.

    Args:
        model: The Bayesian network, which is copied: units, likelihood and shapes are taken from it.
        networks: The networks.
        draws: Draws ``[k, ...]``, of which those of the likelihood's latents are kept.
        output: What it returns.

    Attributes:
        networks: The networks, plain modules.
        output: What it returns.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> model = BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Categorical())
        >>> FrozenPosterior(model, [nn.Linear(2, 3), nn.Linear(2, 3)], {}, "mean")(torch.zeros(5, 2)).sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """

    def __init__(self, model: Any, networks: list[nn.Module], draws: dict[str, Tensor], output: Output) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks).requires_grad_(False)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.output = output
        self._latents = [name for name in draws if name.startswith("likelihood.")]
        for i, name in enumerate(self._latents):
            self.register_buffer(f"latent_{i}", draws[name].clone())

    def forward(self, x: Any, *others: Any) -> Tensor:
        """Evaluate all networks.

        Args:
            x: Inputs ``[B, ...]``, or a dict of them by name, in the units of the data.
            others: Further arguments of the network.

        Raises:
            UsageError: If the likelihood has no formula for its mean.
        """
        given: Any = taken_inputs(self.model, (x, *others) if others else x)
        units = getattr(self.model, "standardized_inputs", None)
        given = given if units is None else units(given)
        output = getattr(self.model, "output", None)
        f = torch.stack([pick(_called(network, given), output) for network in self.networks])
        likelihood = self.model.likelihood
        f = likelihood.arrange(f, batch_dims=2)
        if drops_dimension(likelihood, f.shape[2:], self.model.target_shape):
            f = f.squeeze(2)
        if self.output == "network":
            return f
        draws = {name: getattr(self, f"latent_{i}") for i, name in enumerate(self._latents)}
        # In a trace there are no values to be looked at.
        traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        with pyro.validation_enabled(False) if traced else contextlib.nullcontext():
            conditional = self.model.conditional_of(f, draws)
            found = mean_or_none(conditional)
        if found is None:
            raise UsageError(
                f"output: {kind_of_noise(conditional)} has no formula for its mean; freeze with output='network'."
            )
        return found.mean(0) if self.output == "mean" else found


def _called(network: nn.Module, x: Any) -> Any:
    """What a plain network makes of inputs in the form of :meth:`~bayeshnet.BayesianModel.as_inputs`."""
    if isinstance(x, tuple):
        return network(*x)
    return network(**x) if isinstance(x, dict) else network(x)


def _model_of(guide: Any, model: Any) -> Any:
    if has_network(guide):
        raise ArgumentTypeError("guide: is a model; pass the fitted guide first, then the number of networks.")
    if model is None:
        model = getattr(guide, "original_model", None)
        with contextlib.suppress(TypeError):  # of a copy, which has none
            found: Any = getattr(guide, "model", None) if model is None else None
            model = unwrap(found) if found is not None else model
        if model is None:
            raise ArgumentError("model: is not given, and the guide does not know it; pass the BayesianModel.")
    if not has_network(model):
        raise ArgumentTypeError(f"model: is {kind_of(model)}; pass a BayesianModel, whose network is sampled.")
    return model


def _draws(model: Any, guide: Any, k: int, generator: torch.Generator | None) -> dict[str, Tensor]:
    require_count("k", k)
    check_source(model, guide)
    check_generator(generator)
    with one_thread("sample_networks"), evaluating(model):
        if generator is None:
            draws = draws_of(model, guide, None, k, True)
        else:
            draws = Parts(model, guide, None, k, base_seed(generator), True, most=2**62)(0)
    num = len(next(iter(draws.values())))
    if num < k:
        raise ArgumentError(f"k: is {k}, and there are {num} draws; pass at most as many.")
    return draws


def _networks(model: Any, draws: dict[str, Tensor], k: int) -> list[nn.Module]:
    net = model.net
    shapes = [torch.Size(shape) for shape in net.param_shapes]
    if model.flat:
        columns = draws["weights"].split([shape.numel() for shape in shapes], dim=1)
        weights = [column.reshape(-1, *shape) for column, shape in zip(columns, shapes, strict=True)]
    else:
        weights = [draws[name] for name in net.param_names]
    networks = [plain_copy(net, [value[i] for value in weights]).eval() for i in range(k)]
    for network in networks:
        _take_statistics(model, network)
    return networks


def _take_statistics(model: Any, network: nn.Module) -> None:
    """Give batch norm the statistics of this network on the model's reference rows, where the model goes by those."""
    kept: Any = getattr(model, "batch_norm", None)
    if kept is None or not kept.layers or kept.mode == "running":
        return
    rows = [value for name, value in kept.named_buffers() if name.startswith("rows_")]
    names = [name.removeprefix("rows_") for name, _ in kept.named_buffers() if name.startswith("rows_")]
    places = [name.removeprefix("module.") for name in kept.layers]
    layers: list[Any] = [network.get_submodule(name) for name in places]
    wrong = [name for name, layer in zip(places, layers, strict=True) if getattr(layer, "running_mean", None) is None]
    if kept.mode != "draws" or not rows or wrong:
        why = f"{wrong} keep no running statistics" if wrong else f"the mode is {kept.mode!r}"
        raise UsageError(
            "net: has batch norm, and a plain network cannot have its statistics: "
            f"{why if rows else 'there are no reference rows'}. Build the model with batch_norm='draws' and call "
            "model.set_reference_rows(x_train), or use GroupNorm."
        )
    calls = dict.fromkeys(places, 0)

    def note(name: str) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
            dims = [dim for dim in range(args[0].dim()) if dim != 1]
            variance, mean = torch.var_mean(args[0], dims, correction=0)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
            calls[name] += 1

        return hook

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in zip(places, layers, strict=True)]
    try:
        kept_rows = dict(zip(names, rows, strict=True))
        by_name = any(not name.isdigit() for name in names)
        inputs = kept_rows if by_name else tuple(rows) if len(rows) > 1 else rows[0]
        _called(network, model.standardized_inputs(inputs))
    finally:
        for handle in handles:
            handle.remove()
    if set(calls.values()) != {1}:
        raise UsageError(
            f"net: calls of its batch norm layers, {calls}: each has to be called once, so that its statistics belong "
            "to the layer; give each call a layer of its own, or use GroupNorm."
        )
