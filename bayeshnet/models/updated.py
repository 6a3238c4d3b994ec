"""The posterior of some data as the prior of the next."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoCallable, AutoGuide
from torch import Size, Tensor, nn
from torch.distributions import biject_to

from bayeshnet.checks import kind_of, require_count
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.models.weight_normal import WeightNormal

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["PosteriorPrior", "updated"]

_LOGGER = logging.getLogger(__name__)

_FULL = 2_000  # latents up to which all covariances are kept
_RANK = 100  # directions that are kept of more
_FEWEST, _MOST = 2_000, 20_000  # draws for moments, 20 for each latent


class PosteriorPrior(Configured, nn.Module):
    r"""A Gaussian over all latents of a network's model, in unconstrained coordinates, as the prior of the next data.

    All weights are one site with the marginal of the Gaussian, and the latents of the likelihood follow one after the
    other, each with its conditional given all before it: together they have the joint density

    .. math:: N(u; m, \Sigma), \quad \Sigma = L L^\top \text{ or } F F^\top + \mathrm{diag}(d)

    and that of the transformation to their support. The moments are buffers: they move and are saved with the model.

    Args:
        num_latents: Number D of latents, the W weights first.
        sites: Name and prior of each latent of the likelihood, for its support and shape.
        rank: Number r of columns of F; None for the form with L.
        origin: Where the moments come from, for the ``repr``.

    Attributes:
        loc: Mean m ``[D]``.
        scale_tril: L ``[D, D]``, lower triangular; or
        factor: F ``[D, r]``, and
        diag: d ``[D]``.

    Example:
        >>> prior = PosteriorPrior(3, {}, origin="three draws")
        >>> prior
        PosteriorPrior(3 latents, three draws)
        >>> prior.weights().mean
        tensor([0., 0., 0.])
    """

    configured_as = "prior"

    def __init__(
        self, num_latents: int, sites: Mapping[str, Any], *, rank: int | None = None, origin: str = "nothing yet"
    ) -> None:
        super().__init__()
        full = rank is None
        self.register_buffer("loc", torch.zeros(num_latents))
        self.register_buffer("scale_tril", torch.eye(num_latents) if full else None)
        self.register_buffer("factor", None if full else torch.zeros(num_latents, rank or 0))
        self.register_buffer("diag", None if full else torch.ones(num_latents))
        self.loc: Tensor
        self.scale_tril: Tensor | None
        self.factor: Tensor | None
        self.diag: Tensor | None
        self.num_latents, self.rank, self.origin = num_latents, rank, origin
        self._sites = dict(sites)
        self._sizes = [_unconstrained_shape(fn).numel() for fn in sites.values()]
        self.num_weights = num_latents - sum(self._sizes)

    def not_compared(self) -> tuple[str, ...]:
        """See :meth:`~bayeshnet.configuration.Configured.not_compared`."""
        return ("origin",)

    def distribution(self, name: str, record: Any, *, like: Tensor) -> TorchDistributionMixin:
        """There is no prior of one parameter alone; a model asks for :meth:`weights`.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"prior: {self!r} has no distribution of {name!r} alone; it is that of BayesianModel.updated.")

    def __repr__(self) -> str:
        also = "".join(f", with likelihood.{name}" for name in self._sites)
        return f"PosteriorPrior({len(self.loc)} latents{also}, {self.origin})"

    def weights(self) -> TorchDistributionMixin:
        """The prior of all weights ``[W]``."""
        num, loc = self.num_weights, self.loc[: self.num_weights]
        if self.scale_tril is not None:
            tril = self.scale_tril[:num, :num]
            return cast("Any", dist.MultivariateNormal)(loc, scale_tril=tril, validate_args=False)
        diag, factor = cast("Tensor", self.diag)[:num], cast("Tensor", self.factor)[:num]
        if factor.shape[1] == 0:
            return WeightNormal(loc, diag.sqrt())
        return cast("Any", dist.LowRankMultivariateNormal)(loc, factor, diag, validate_args=False)

    def sample_likelihood(self, weights: Tensor) -> dict[str, Tensor]:
        """Draw the latents of the likelihood given the weights ``[*samples, W]``, as Pyro sites."""
        drawn: dict[str, Tensor] = {}
        if not self._sites:
            return drawn
        mean, tril = self._given(weights)
        place = 0
        residuals = weights.new_zeros((*weights.shape[:-1], 0))
        for (name, prior), size in zip(self._sites.items(), self._sizes, strict=True):
            end = place + size
            loc = mean[..., place:end] + residuals @ tril[place:end, :place].T
            own = tril[place:end, place:end]
            transform: Any = biject_to(prior.support)
            shape = _unconstrained_shape(prior)
            if shape:
                base: Any = cast("Any", dist.MultivariateNormal)(loc, scale_tril=own, validate_args=False)
            else:
                base = dist.Normal(loc[..., 0], own[0, 0], validate_args=False)
            drawn[name] = pyro.sample(f"likelihood.{name}", dist.TransformedDistribution(base, [transform]))
            value = transform.inv(drawn[name])
            value = value if shape else value.unsqueeze(-1)
            new = torch.linalg.solve_triangular(own, (value - loc).unsqueeze(-1), upper=False).squeeze(-1)
            residuals, place = torch.cat([residuals.expand(*new.shape[:-1], place), new], -1), end
        return drawn

    def _given(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[*samples, L]`` of the likelihood's latents given the weights, and the factor of their covariance."""
        num = self.num_weights
        off = weights - self.loc[:num]
        if self.scale_tril is not None:
            tril = self.scale_tril
            rows = off.reshape(-1, num).T
            noise = torch.linalg.solve_triangular(tril[:num, :num], rows, upper=False).T.reshape(off.shape)
            return self.loc[num:] + noise @ tril[num:, :num].T, tril[num:, num:]
        diag, factor = cast("Tensor", self.diag), cast("Tensor", self.factor)
        scaled = factor[:num] / diag[:num, None]
        core = torch.eye(factor.shape[1], dtype=off.dtype, device=off.device) + factor[:num].T @ scaled
        half = torch.linalg.solve(core, factor[num:].T)  # [r, L]
        mean = self.loc[num:] + off @ scaled @ half
        return mean, torch.linalg.cholesky(factor[num:] @ half + torch.diag(diag[num:]))


def updated(
    model: BayesianModel,
    guide: Callable[..., Any] | Mapping[str, Tensor],
    *,
    dataset_size: int | None = None,
    num_samples: int | None = None,
) -> BayesianModel:
    """Return a model for the next data, whose prior is the posterior of the data so far.

    All latents have their joint posterior as their prior, the likelihood's too, in unconstrained coordinates: of a
    guide that is a Gaussian there (``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal``, ``AutoNormal``,
    a family ``"mean_field"`` without conditional layers) that Gaussian itself, so that exact posteriors stay exact;
    of any other, a hypernetwork or conditional layers, the Gaussian with the mean and all covariances of its draws
    (above 2,000 latents the 100 directions with the largest ones, and all variances). Curvature and modes are lost
    there. Latents of the prior, such as hierarchical scales, are averaged over: the next data depend on the weights and
    the noise alone. The new model has one site for all weights, and no conditional layers where they are correlated.
    What is learned as a parameter (``learn=True``) goes on from its value.

    Args:
        model: The model of the data so far.
        guide: A fitted guide; or draws ``[S, *shape]`` by site, from NUTS for instance.
        dataset_size: Number of rows of the next data, as for a new model.
        num_samples: Number of draws; by default 20 for each latent, 2,000 to 20,000.

    Raises:
        ArgumentError: If the guide is a point, or lacks latents of this model.
        ArgumentTypeError: If it is neither a guide nor draws.
        UsageError: If it is a guide of Pyro that was never called.

    Example:
        >>> from bayeshnet import AutoHypernet, BayesianModel, likelihoods
        >>> model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> guide = AutoHypernet(model, example=(torch.randn(5, 2), torch.randn(5)))
        >>> model.updated(guide).prior
        PosteriorPrior(3 latents, moments of 2000 draws)
        >>> from pyro.infer.autoguide import AutoMultivariateNormal
        >>> guide = AutoMultivariateNormal(model)
        >>> _ = guide(torch.randn(5, 2), torch.randn(5))
        >>> updated(model, guide).prior
        PosteriorPrior(3 latents, the Gaussian of AutoMultivariateNormal)
    """
    if dataset_size is not None:
        require_count("dataset_size", dataset_size, advice=", the rows of the next data")
    if num_samples is not None:
        require_count("num_samples", num_samples, least=2)
    if model.points.any:
        raise UsageError(
            "model: has parameters that are points, learned with the guide, and of what the data said of them nothing "
            "would be kept; build it with others='frozen', or with all parameters Bayesian."
        )
    own_priors = dict(model.likelihood.priors())
    for name, fn in own_priors.items():
        if len(fn.event_shape) > 1:
            raise ArgumentError(
                f"likelihood: its latent {name!r} has shape {tuple(fn.event_shape)}; an updated model can have single "
                "numbers and vectors."
            )
    like = model._like  # pyright: ignore[reportPrivateUsage] - a part of the model
    with torch.no_grad():
        moments, origin = _moments(model, guide, num_samples)
        rank = moments["factor"].shape[1] if "factor" in moments else None
        prior = PosteriorPrior(len(moments["loc"]), own_priors, rank=rank, origin=origin).to(like)
        for name, value in moments.items():
            setattr(prior, name, value.detach().to(like))
    new = copy.deepcopy(model)
    new.prior = prior
    new.flat, new.learned_scales, new.dataset_size = True, None, dataset_size
    return new


def _moments(model: BayesianModel, guide: Any, num_samples: int | None) -> tuple[dict[str, Tensor], str]:
    """Mean and covariance of all latents in float64, and where they come from."""
    size = sum(_unconstrained_shape(fn).numel() for fn in _priors(model).values())
    name = type(guide).__name__
    if not isinstance(guide, Mapping):
        if not callable(guide) or isinstance(guide, type):
            raise ArgumentTypeError(f"guide: is {kind_of(guide)}; pass a fitted guide, or draws by site in a dict.")
        if isinstance(guide, AutoGuide) and not isinstance(guide, AutoCallable) and guide.prototype_trace is None:
            raise UsageError(f"guide: is a {name} that was never called; fit it first.")
        exact = _gaussian(model, guide, size)
        if exact is not None:
            return exact, f"the Gaussian of {name}"
    number = min(max(_FEWEST, 20 * size), _MOST) if num_samples is None else num_samples
    draws = guide if isinstance(guide, Mapping) else _draws(model, guide, number)
    rows = _unconstrained(model, draws)
    loc, off = rows.mean(0), rows - rows.mean(0)
    variance = off.square().sum(0) / (len(rows) - 1)
    _refuse_points(variance)
    if size <= _FULL and len(rows) > size + 1:
        return {"loc": loc, "scale_tril": _factor(off.T @ off / (len(rows) - 1))}, f"moments of {len(rows)} draws"
    _, values, directions = torch.linalg.svd(off, full_matrices=False)
    rank = min(_RANK, len(rows) - 1)
    factor = directions[:rank].T * (values[:rank] / math.sqrt(len(rows) - 1))
    diag = (variance - factor.square().sum(1)).clamp(min=0.0) + 1e-6 * variance
    return {"loc": loc, "factor": factor, "diag": diag}, f"moments of {len(rows)} draws in {rank} directions"


def _gaussian(model: BayesianModel, guide: Any, size: int) -> dict[str, Tensor] | None:
    """Moments of a guide that is a Gaussian in unconstrained coordinates; None of any other."""
    posterior = getattr(guide, "get_posterior", None)
    if posterior is None:
        return _independent_sites(model, guide)
    try:
        fn: Any = posterior()
    except Exception as error:  # of a guide that wants arguments, or has no such distribution
        _LOGGER.debug("no distribution over all latents: %s", error)
        return None
    base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
    if tuple(fn.event_shape) != (size,) or tuple(fn.batch_shape):
        return None
    if isinstance(base, torch.distributions.Normal):
        return _independent(base.loc, base.scale)
    covariance: Tensor | None = getattr(fn, "covariance_matrix", None)
    if covariance is None or size > _FULL:
        return None
    return {"loc": fn.mean.double(), "scale_tril": _factor(covariance.double())}


def _independent_sites(model: BayesianModel, guide: Any) -> dict[str, Tensor] | None:
    """Moments of a guide whose sites are Gaussians of their own, as those of ``AutoNormal`` are."""
    if not (hasattr(guide, "locs") and hasattr(guide, "scales")) or getattr(guide, "prototype_trace", None) is None:
        return None
    with poutine.block():
        nodes: Any = poutine.trace(guide).get_trace().nodes
    locs: list[Tensor] = []
    scales: list[Tensor] = []
    for name in _priors(model):
        fn: Any = nodes[f"{name}_unconstrained"]["fn"] if f"{name}_unconstrained" in nodes else None
        base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
        if not isinstance(base, torch.distributions.Normal):
            return None
        locs.append(base.loc.reshape(-1))
        scales.append(base.scale.expand(base.loc.shape).reshape(-1))
    return _independent(torch.cat(locs), torch.cat(scales))


def _independent(loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
    _refuse_points(scale)
    return {"loc": loc.double(), "factor": loc.new_zeros(len(loc), 0), "diag": scale.double().square()}


def _refuse_points(spread: Tensor) -> None:
    if not bool((spread > 0).all()):
        raise ArgumentError(
            "guide: has no spread in some latents, and a point is no prior that further data could move; pass a guide "
            "with a spread, such as AutoHypernet or AutoNormal."
        )


def _factor(covariance: Tensor) -> Tensor:
    _refuse_points(covariance.diagonal())
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):  # what rounding has made of directions without spread
        factor = torch.linalg.cholesky(covariance + 1e-8 * torch.diag(covariance.diagonal()))
    return factor


def _draws(model: BayesianModel, guide: Any, number: int) -> Mapping[str, Tensor]:
    own = getattr(guide, "sample_posterior", None)
    attached = getattr(guide, "attached", None)
    with contextlib.nullcontext() if attached is None else attached(model):
        if own is not None:
            return own(number)
        return Predictive(guide, num_samples=number, return_sites=tuple(model.latent_shapes), parallel=True)()


def _unconstrained(model: BayesianModel, draws: Mapping[str, Tensor]) -> Tensor:
    """Draws ``[S, D]`` in float64, in unconstrained coordinates."""
    parts: list[Tensor] = []
    for name, fn in _priors(model).items():
        if not isinstance(draws.get(name), Tensor):
            raise ArgumentError(
                f"guide: gives no draws of {name!r}, only of {list(draws)}; pass a guide of this model."
            )
        shape, given = (len(draws[name]), *fn.event_shape), draws[name].shape
        if given.numel() != math.prod(shape) or given[len(given) - len(fn.event_shape) :] != fn.event_shape:
            raise ArgumentError(
                f"guide: gives draws {tuple(given)} of {name!r}, and those of this model are {shape}; pass "
                "a guide of this model."
            )
        value = draws[name].reshape(shape).double()
        transform: Any = biject_to(cast("Any", fn).support)
        parts.append(transform.inv(value).reshape(len(value), -1))
    return torch.cat(parts, 1)


def _priors(model: BayesianModel) -> dict[str, TorchDistributionMixin]:
    """The priors of all latents by site name, in the order in which they are drawn."""
    own = model.likelihood.priors()
    return {**model.weight_priors(), **{f"likelihood.{name}": fn for name, fn in own.items()}}


def _unconstrained_shape(fn: TorchDistributionMixin) -> Size:
    distribution: Any = fn
    transform: Any = biject_to(distribution.support)
    return Size(transform.inverse_shape(distribution.event_shape))
