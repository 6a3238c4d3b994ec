"""Where the draws of a prediction come from: a guide, a chain, an ensemble of networks, tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from pyro.infer import Predictive
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation._seeds import seeded
from bayeshnet.guides.base import with_model
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.sites.arguments import require_model_and_guide
from bayeshnet.sites.memory import refuse_too_large
from bayeshnet.sites.one_thread import one_thread

__all__ = ["Parts", "Source", "check_source", "draws_of", "ensemble_draws", "like_of", "posterior_draws"]

Source: TypeAlias = "Callable[..., Any] | Mapping[str, Tensor] | Sequence[nn.Module]"
"""A fitted guide, draws ``[S, *shape]`` by site, Pyro's ``MCMC`` after its run, or a list of trained networks."""

# Draws of a seeded call are made so many at once, or as many as have this many numbers: whatever memory there is.
_DRAWS_AT_ONCE = 100
_NUMBERS_AT_ONCE = 2**25


def posterior_draws(
    model: BayesianModel, guide: Source, x: Any, num_samples: int, *, parallel: bool = True
) -> dict[str, Tensor]:
    """Draws of every latent site from any guide.

    Args:
        model: The Bayesian network.
        guide: A fitted guide, any of Pyro's; or another source of draws, as :func:`~bayeshnet.predict` takes it.
        x: Inputs, for guides that are called with them.
        num_samples: Number S of draws, if they are made.
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
        return draws_of(model, guide, x, num_samples, parallel)


def ensemble_draws(model: BayesianModel, networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The weights of separately trained networks, as draws of the model's sites.

    Each counts as much as any other: a deep ensemble (Lakshminarayanan et al., NeurIPS 2017) as a posterior.

    Args:
        model: The Bayesian network; its noise has to be known or learned, as networks have no draws of a latent one.
        networks: S networks of the architecture that the model was built from, with its frozen parameters and buffers.

    Returns:
        ``[S, *shape]`` by site name.

    Raises:
        ArgumentError: If there are none, parameters, frozen ones or buffers are others than the model's, or
            its likelihood has latents.
        ArgumentTypeError: If one is no module.

    Example:
        >>> from bayeshnet import likelihoods
        >>> networks = [nn.Linear(2, 1) for _ in range(5)]
        >>> model = BayesianModel(networks[0], likelihood=likelihoods.Normal(scale=0.5))
        >>> {name: tuple(value.shape) for name, value in ensemble_draws(model, networks).items()}
        {'weight': (5, 1, 2), 'bias': (5, 1)}
    """
    if not len(networks):
        raise ArgumentError("guide: is an empty list; pass trained networks, a guide or draws.")
    latent = [name for name in model.latent_shapes if name.startswith("likelihood.")]
    if latent:
        raise ArgumentError(
            f"guide: is a list of networks, which have no draws of the likelihood's latents {latent}; build the model "
            "with noise that is known or learned, likelihoods.Normal(scale=0.1, learn=True), or add draws of them: "
            "predict(model, {**ensemble_draws(other_model, networks), 'likelihood.scale': ...}, x)."
        )
    names: list[str] = model.net.param_names
    shapes = {name: tuple(shape) for name, shape in zip(names, model.net.param_shapes, strict=True)}
    values = [_weights_of(model.net, i, network, shapes) for i, network in enumerate(networks)]
    like = like_of(model)
    stacked = {name: torch.stack([value[name] for value in values]).to(like) for name in names}
    if model.flat:
        return {"weights": torch.cat([value.flatten(1) for value in stacked.values()], dim=1)}
    return stacked


def _weights_of(net: Any, i: int, network: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    if not isinstance(network, nn.Module):
        raise ArgumentTypeError(f"guide[{i}]: is {kind_of(network)}; pass networks in a list, a guide, or draws.")
    own: Any = network
    if hasattr(own, "param_names") and getattr(own, "internal_params", None) is not None:
        found = dict(zip(own.param_names, own.internal_params, strict=True))
    else:
        found = dict(network.named_parameters())
    points: dict[str, Tensor] = net.learned_values() if hasattr(net, "learned_values") else {}
    frozen = {name: found.pop(name) for name in (*getattr(net, "frozen_names", ()), *points) if name in found}
    given = {name: tuple(param.shape) for name, param in found.items()}
    if given != dict(shapes):
        differing = [name for name in {**shapes, **given} if shapes.get(name) != given.get(name)]
        raise ArgumentError(
            f"guide[{i}]: is another architecture than the model's network; they differ in the parameters {differing}. "
            "Pass networks like the one that the model was built from."
        )
    fixed = {**dict(getattr(net, "module", net).named_buffers()), **points}
    others = {**dict(network.named_buffers()), **frozen}
    differing = [
        name
        for name, value in others.items()
        if name in fixed and value.is_floating_point() and not torch.equal(value.detach(), fixed[name].to(value))
    ]
    if differing:
        raise ArgumentError(
            f"guide[{i}]: has other {'learned points' if points else 'frozen parameters'} or buffers than the model's "
            f"network, {differing}, which are no weights: the model would predict with its own. Let all networks share "
            "them (GroupNorm or LayerNorm have none, unlike BatchNorm)."
        )
    return {name: param.detach() for name, param in found.items()}


def like_of(model: Any) -> Tensor:
    """A tensor of the dtype and on the device of the model."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return next((tensor.detach() for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))


def draws_of(model: BayesianModel, guide: Source, x: Any, num_samples: int, parallel: bool) -> dict[str, Tensor]:
    """Draws of the model's sites from any source; those that are there already are all used."""
    given: Any = guide
    if hasattr(given, "get_samples"):
        given = given.get_samples()
    elif isinstance(given, list | tuple):
        given = ensemble_draws(model, cast("Sequence[nn.Module]", given))
    elif not isinstance(given, Mapping):
        given = _drawn(model, given, x, num_samples, parallel)
    return _checked(model, given)


def _drawn(model: BayesianModel, guide: Any, x: Any, num_samples: int, parallel: bool) -> Any:
    own = getattr(guide, "sample_posterior", None)
    like, numel = like_of(model), sum(shape.numel() for shape in model.latent_shapes.values())
    refuse_too_large(
        2 * num_samples * numel * like.element_size(),  # draws, and the noise that they are made of
        f"num_samples: is {num_samples}, draws of {numel:,} latents each",
        ["pass fewer", "use predict_summary, which makes and drops them in parts"],
        device=like.device,
    )
    with with_model(guide, model), torch.no_grad():
        if own is not None:
            return own(num_samples)
        sites = tuple(model.latent_shapes)
        return Predictive(guide, num_samples=num_samples, return_sites=sites, parallel=parallel)(x)


class Parts:
    """The draws of a seeded call, in parts that can be made again.

    The size of a part depends on the model alone, and its numbers on the seed and its place, so that neither depends on
    how much fits into memory.

    Args:
        model: The Bayesian network.
        source: A guide, or draws.
        x: Some inputs, for guides that are called with them.
        num_samples: Number of draws, if they are made.
        seed: That of the call.
        parallel: Draw a part in one vectorised call.
        most: So many bytes of draws are kept; more are made anew each time.

    Attributes:
        num: Number S of draws.
        spans: First and last place of each part.
        num_places: Places that the seeds of the draws take.

    Example:
        >>> from bayeshnet import likelihoods
        >>> model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> Parts(model, [nn.Linear(2, 1)] * 3, None, 1, 0, True, most=10**6).spans
        [(0, 3)]
    """

    def __init__(
        self, model: BayesianModel, source: Source, x: Any, num_samples: int, seed: int, parallel: bool, *, most: int
    ) -> None:
        self._model, self._source, self._x, self._seed, self._parallel = model, source, x, seed, parallel
        like = like_of(model)
        self.device = like.device
        made = not (isinstance(source, Mapping | list | tuple) or hasattr(source, "get_samples"))
        self._all = None if made else draws_of(model, source, x, num_samples, parallel)
        if self._all is not None:
            self.num = len(next(iter(self._all.values())))
            self.spans = [(0, self.num)]
            self.num_places = 0
            return
        numel = sum(shape.numel() for shape in model.latent_shapes.values())
        size = max(1, min(_DRAWS_AT_ONCE, _NUMBERS_AT_ONCE // max(numel, 1)))
        self.num = num_samples
        self.spans = [(start, min(start + size, num_samples)) for start in range(0, num_samples, size)]
        self.num_places = len(self.spans)
        if num_samples * numel * like.element_size() <= most:
            self._all = self._together()
            self.spans = [(0, self.num)]

    @property
    def kept(self) -> bool:
        """Whether all draws are in memory."""
        return self._all is not None

    def __call__(self, i: int) -> dict[str, Tensor]:
        """The draws of part i."""
        if self._all is not None:
            return self._all
        first, last = self.spans[i]
        with seeded(self._seed, i, self.device):
            return draws_of(self._model, self._source, self._x, last - first, self._parallel)

    def _together(self) -> dict[str, Tensor]:
        parts = [self(i) for i in range(len(self.spans))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def of_likelihood(self) -> dict[str, Tensor]:
        """The draws of the likelihood's latents, of all parts together."""
        if self._all is not None:
            return {name: value for name, value in self._all.items() if name.startswith("likelihood.")}
        if not any(name.startswith("likelihood.") for name in self._model.latent_shapes):
            return {}
        parts = [self(i) for i in range(len(self.spans))]
        found = [{name: part[name] for name in part if name.startswith("likelihood.")} for part in parts]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _checked(model: BayesianModel, draws: Mapping[str, Any]) -> dict[str, Tensor]:
    """Draws ``[S, *shape]`` of the model's sites; dimensions of size 1, the place of plates, may be between.

    Raises:
        ArgumentError: If a site is missing or has another shape, or numbers of draws differ.
        ArgumentTypeError: If draws are no tensor.
    """
    found: dict[str, Tensor] = {}
    own = [f"prior.{name}" for name in model.prior_latents()] if hasattr(model, "prior_latents") else []
    # No prediction depends on the prior's own latents.
    shapes = {name: shape for name, shape in model.latent_shapes.items() if name in draws or name not in own}
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
        "S draws; of several chains take get_samples() without group_by_chain, or flatten(0, 1) of each site"
        if chains
        else "S draws of a guide made for this model"
    )
    wanted = ", ".join(["S", *map(str, shape)])
    return ArgumentError(f"guide: its draws of {name!r} have shape {given}; pass [{wanted}], {fix}.")


def check_source(model: Any, guide: Any) -> None:
    """Raise unless draws can be had from it.

    Raises:
        ArgumentTypeError: If it is something else, or was made for another model.
    """
    if isinstance(guide, Mapping | list | tuple) or hasattr(guide, "get_samples"):
        return
    if not callable(guide):
        raise ArgumentTypeError(
            f"guide: is {kind_of(guide)}; pass a fitted guide, or draws [S, *shape] by site in a dict, Pyro's MCMC "
            "after its run, or a list of trained networks."
        )
    require_model_and_guide(model, guide)
