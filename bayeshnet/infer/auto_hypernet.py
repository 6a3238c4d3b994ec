"""A guide for any Pyro model whose posterior is a hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, AutoGuide
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions.utils import _sum_rightmost as sum_rightmost  # pyright: ignore[reportPrivateUsage]

from bayeshnet.distributions.implicit_weights import ImplicitWeights
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import NoisySampler
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.infer.arguments import call_arguments, nan_data_error, refuse_nan_data, require_targets
from bayeshnet.infer.default_hnet import default_hnet
from bayeshnet.infer.latents import LatentSite, PriorStart, latent_sites, nodes_of, prior_draw, prior_start
from bayeshnet.infer.quantiles import sample_quantiles
from bayeshnet.models.param_sites import emit_param_sites

__all__ = ["AutoHypernet"]


class AutoHypernet(AutoContinuous):
    r"""Automatic guide whose draws come from a hypernetwork fed with noise.

    All latents of the model, network weights, hierarchical scales or both, are drawn together, in unconstrained
    coordinates, as

    .. math:: u = \mathrm{loc} + \mathrm{scale} \cdot (h(z) + \sigma e)

    with fixed loc and scale, the centre and spread of the prior (which puts all coordinates on one footing for the
    optimiser), and a learned hypernetwork h and noise scale sigma. Correlations reach across all latents, and the
    posterior may be curved or multimodal. The guide is built at once; its parameters live in the module, so two guides
    never share any. It works under ``Trace_ELBO``, ``TraceMeanField_ELBO`` and ``RenyiELBO``, with vectorised
    particles, and in ``Predictive``, parallel or not.

    Args:
        model: Any Pyro model whose latents are continuous; a :class:`~bayeshnet.BayesianModel`, for instance.
        example: The model's arguments, which the guide is built from: a tuple of positional ones, a mapping of keyword
            ones, or one tensor. With observations, as for training.
        hnet: A function from target shapes (a list of lists of int) to a hypernetwork. One without a perturbation
            wrapper gets one with a learned scale per weight. By default an MLP with tanh layers and a linear part,
            which starts injective.
        noise_dim: Number n of noise inputs; ``min(20, D)`` by default. Not with ``hnet``.
        hidden_layers: Widths of the default hypernetwork. Not with ``hnet``.
        noise: Kind of the perturbation: ``"shared"`` (exact density where the sampler does not fold; default of the
            default hypernetwork) or ``"independent"`` (linearised density; default of a network from ``hnet``, which
            may fold). Not with an ``hnet`` that has a perturbation wrapper.
        estimator: An estimator of log q that fits the noise; by default
            :class:`~bayeshnet.entropy.ChangeOfVariables` or :class:`~bayeshnet.entropy.Linearised`.
        init_loc_fn: One of Pyro's per-site initialisation functions for the location. By default weights with a Normal
            prior start at ``0.3`` of its scale around its mean, at random, and other latents at their prior median.
        init_scale: Start of the noise scale, in units of the prior's spread.
        whiten: Use the prior's spread as the scale; otherwise 1.

    Raises:
        ValueError: If latents are discrete or absent, ``noise_dim`` exceeds their number, the data hold NaN, or the
            hypernetwork does not produce what is asked for.
        TypeError: If an argument is of another type.
        RuntimeError: If the hypernetwork has batch norm or dropout, so that its draws have no density.

    Example:
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> guide = AutoHypernet(model, example=(torch.tensor([1.0, 2.0]),))
        >>> guide.sample_posterior(5)["mu"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        example: Any,
        hnet: Callable[[list[list[int]]], HyperNetInterface] | None = None,
        noise_dim: int | None = None,
        hidden_layers: Sequence[int] | None = None,
        noise: Literal["shared", "independent"] | None = None,
        estimator: LogDensity | None = None,
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float = 0.1,
        whiten: bool = True,
    ) -> None:
        if not callable(model):
            raise ArgumentTypeError(f"model: is a {type(model).__name__}; pass a Pyro model, a callable.")
        own_options = {"noise_dim": noise_dim, "hidden_layers": hidden_layers}
        clash = [name for name, value in own_options.items() if value is not None]
        if hnet is not None and clash:
            raise ArgumentError(
                f"hnet, {clash[0]}: both were given; {clash[0]} describes the default hypernetwork. Build yours with "
                "it inside the function hnet."
            )
        if noise not in (None, "shared", "independent"):
            raise ArgumentError(f"noise: is {noise!r}; pass 'shared' or 'independent'.")
        if not init_scale > 0:
            raise ArgumentError(f"init_scale: is {init_scale}; pass a positive number.")
        super().__init__(model, init_loc_fn=init_loc_fn or prior_draw)
        args, kwargs = call_arguments(example, "example")
        require_targets(model, args, kwargs, "example")
        try:
            self._setup_prototype(*args, **kwargs)
        except ValueError as error:  # Pyro's validation of a distribution's parameters, computed from the data
            better = nan_data_error(args, kwargs, error)
            if better is None:
                raise
            raise better from error
        refuse_nan_data(cast("Trace", self.prototype_trace), args, kwargs)

        start = self._start(model, args, kwargs, init_loc_fn, whiten)
        self.register_buffer("loc", start.loc)
        self.register_buffer("scale", start.scale)
        self.loc: Tensor
        self.scale: Tensor
        if hnet is None:
            jitter = start.gaussian if init_loc_fn is None else torch.zeros_like(start.gaussian)
            generator = default_hnet(
                self.target_shapes,
                noise_dim=self._noise_dim(noise_dim),
                hidden_layers=(64, 64) if hidden_layers is None else hidden_layers,
                noise=noise or "shared",
                start=0.3 * torch.randn_like(start.loc) * jitter,
                start_scale=init_scale,
            )
        else:
            generator = self._own_hnet(hnet, init_scale, noise).to(dtype=start.loc.dtype, device=start.loc.device)
        # Registered past PyroModule, which would put the parameters into Pyro's global store at every access.
        self._modules["hnet"] = generator
        self._sampler = NoisySampler(generator)
        self.estimator = estimator or (ChangeOfVariables() if self._sampler.shared else Linearised())
        if not isinstance(self.estimator, LogDensity):
            raise ArgumentTypeError(
                f"estimator: is a {type(estimator).__name__}; pass an estimator of bayeshnet.entropy, such as "
                "ChangeOfVariables()."
            )
        self.estimator.check(self._sampler)

    # ------------------------------------------------------------------ building

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        # That of AutoContinuous would fail on discrete latents and on mixtures; the sites are described here instead.
        AutoGuide._setup_prototype(self, *args, **kwargs)
        self._sites = latent_sites(cast("Trace", self.prototype_trace))
        self._sizes = [site.numel for site in self._sites]
        self.latent_dim = sum(self._sizes)
        self._unpacked_shapes: tuple[torch.Size | None, list[torch.Size]] = (None, [])

    def _init_loc(self) -> Tensor:
        nodes = nodes_of(cast("Trace", self.prototype_trace))
        values = [site.unconstrain(nodes[site.name]["value"]) for site in self._sites]
        return torch.cat([value.reshape(-1) for value in values]).detach()

    def _start(
        self,
        model: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        init_loc_fn: Callable[..., Any] | None,
        whiten: bool,
    ) -> PriorStart:
        prototype = self._init_loc()
        start = prior_start(model, self._sites, prototype, args, kwargs)
        loc = start.loc if init_loc_fn is None else prototype
        scale = start.scale if whiten else torch.ones_like(start.scale)
        return PriorStart(loc, scale, start.gaussian)

    def _noise_dim(self, noise_dim: int | None) -> int:
        if noise_dim is None:
            return min(20, self.latent_dim)
        if not 1 <= noise_dim <= self.latent_dim:
            raise ArgumentError(
                f"noise_dim: is {noise_dim}; the model has {self.latent_dim} latent numbers, so pass 1 to "
                f"{self.latent_dim}, or leave it out for {min(20, self.latent_dim)}."
            )
        return noise_dim

    def _own_hnet(
        self,
        build: Callable[[list[list[int]]], HyperNetInterface],
        init_scale: float,
        noise: Literal["shared", "independent"] | None,
    ) -> HPerturbWrapper:
        hnet = build(self.target_shapes)
        if not isinstance(hnet, HyperNetInterface):
            raise ArgumentTypeError(
                f"hnet: returned a {type(hnet).__name__}; it has to return a hypernetwork (HyperNetInterface)."
            )
        if hnet.num_outputs != self.latent_dim:
            raise ArgumentError(
                f"hnet: produces {hnet.num_outputs} numbers; the model's latents need {self.latent_dim}. Build it from "
                "the target shapes that it is called with."
            )
        if isinstance(hnet, HPerturbWrapper):
            if noise is not None:
                raise ArgumentError(
                    "hnet, noise: both were given, and the hypernetwork has a perturbation wrapper; choose the noise "
                    "there."
                )
            return hnet
        return HPerturbWrapper(
            hnet, sigma_noise=init_scale, noise=noise or "independent", learn_sigma="per_weight", verbose=False
        )

    # ------------------------------------------------------------------ what there is

    @property
    def hnet(self) -> HPerturbWrapper:
        """The hypernetwork with its perturbation noise."""
        return self._modules["hnet"]  # pyright: ignore[reportReturnType]

    @property
    def target_shapes(self) -> list[list[int]]:
        """Shapes of the latents in unconstrained coordinates, in the order in which they are generated."""
        return [list(site.shape) for site in self._sites]

    def __getstate__(self) -> dict[str, Any]:
        # A copy without the model, as for every guide of Pyro; theirs takes it from the original as well.
        return {**self.__dict__, "_model": None, "master": None}

    def __repr__(self) -> str:
        noise = "shared" if self._sampler.shared else "independent"
        return (
            f"AutoHypernet(latent_dim={self.latent_dim}, sites={len(self._sites)}, "
            f"hnet={type(self._sampler.generator).__name__}, noise_dim={self._sampler.latent_dim}, noise={noise!r}, "
            f"estimator={self.estimator!r})"
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser: location, linear part and noise scale at ``lr``, the rest at 0.3 lr.

        A generator's hidden layers act on all weights at once and want smaller steps than parameters of one weight.
        """
        fast: list[nn.Parameter] = []
        slow: list[nn.Parameter] = []
        direct = getattr(self._sampler.generator, "direct_params", None)
        one_weight = {id(param) for param in (direct() if direct is not None else ())}
        generated = {id(param) for param in self._sampler.generator.internal_params or ()}
        for param in self.hnet.parameters():
            quick = id(param) in one_weight or id(param) not in generated
            (fast if quick else slow).append(param)
        return [{"params": fast, "lr": lr}, {"params": slow, "lr": 0.3 * lr}]

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check how far the guide's density can be trusted: folding, or the gap to importance sampling."""
        return self.get_posterior().diagnose(num_samples=num_samples, thorough=thorough)

    # ------------------------------------------------------------------ the guide

    def get_posterior(self, *args: Any, **kwargs: Any) -> ImplicitWeights:
        """The distribution over all latents, flattened and unconstrained: a draw is ``[D]``."""
        # Not validated: it is built at every step, of parts that were checked once.
        return ImplicitWeights(
            self._sampler, estimator=self.estimator, loc=self.loc, scale=self.scale, validate_args=False
        )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents as Pyro sites; the arguments are those of the model.

        Returns:
            The values by site name.
        """
        emit_param_sites(f"{self._pyro_name}.hnet", self.hnet)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        masked = poutine.get_mask() is False
        values: dict[str, Tensor] = {}
        for site, unconstrained in self._unpack(latent):
            value = site.constrain(unconstrained)
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(plates[plate])
                if site.transform is not None and not masked:
                    # A site of its own: inside the Delta, TraceMeanField_ELBO would drop the Jacobian.
                    log_density = -site.transform.log_abs_det_jacobian(unconstrained, value)
                    log_density = sum_rightmost(log_density, log_density.dim() - value.dim() + site.value_event_dim)
                    unit = dist.Unit(log_density, has_rsample=True)
                    pyro.sample(f"_jac_{site.name}", unit, infer={"is_auxiliary": True})
                values[site.name] = pyro.sample(site.name, _PointMass(value, event_dim=site.value_event_dim))
        return values

    def _unpack(self, latent: Tensor) -> Iterator[tuple[LatentSite, Tensor]]:
        batch_shape = latent.shape[:-1]
        if self._unpacked_shapes[0] != batch_shape:  # the same at every step; broadcast_shapes is slow
            shapes = [torch.broadcast_shapes(s.shape, batch_shape + (1,) * s.event_dim) for s in self._sites]
            self._unpacked_shapes = (batch_shape, shapes)
        parts = latent.split(self._sizes, -1)
        for site, part, shape in zip(self._sites, parts, self._unpacked_shapes[1], strict=True):
            yield site, part.reshape(shape)

    # ------------------------------------------------------------------ summaries

    @torch.no_grad()
    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        """``num_samples`` draws of every latent in one call: ``[num_samples, *shape]`` by site name.

        Raises:
            ValueError: If ``num_samples`` is not positive.
        """
        if num_samples < 1:
            raise ArgumentError(f"num_samples: is {num_samples}; pass a positive number.")
        latent = self.get_posterior().rsample((num_samples,))
        return {
            site.name: site.constrain(part.reshape((num_samples, *site.shape)))
            for site, part in zip(self._sites, latent.split(self._sizes, -1), strict=True)
        }

    def median(  # pyright: ignore[reportIncompatibleMethodOverride] - one keyword more than Pyro's
        self, *args: Any, num_samples: int = 1000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Median of each latent coordinate by Monte Carlo, standard error about ``1.25 std / sqrt(num_samples)``."""
        return {name: value[0] for name, value in self.quantiles([0.5], num_samples=num_samples).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 1000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of each latent coordinate by Monte Carlo.

        They are taken in unconstrained coordinates and transformed, as Pyro's other guides do.

        Args:
            quantiles: Q numbers between 0 and 1.
            args: Ignored, for Pyro's signature.
            num_samples: Number of draws; the error of a quantile falls with its square root.
            kwargs: Ignored.

        Returns:
            ``[Q, *shape]`` by site name.

        Raises:
            ValueError: If a quantile is outside of 0..1.
        """
        levels = torch.as_tensor(quantiles, dtype=self.loc.dtype, device=self.loc.device)
        if levels.dim() != 1 or bool(((levels < 0) | (levels > 1)).any()):
            raise ArgumentError(f"quantiles: is {quantiles}; pass a list of numbers between 0 and 1.")
        latent = self.get_posterior().rsample((num_samples,))
        parts = sample_quantiles(latent, levels).split(self._sizes, -1)
        return {
            site.name: site.constrain(part.reshape((len(levels), *site.shape)))
            for site, part in zip(self._sites, parts, strict=True)
        }


class _PointMass(dist.Delta):
    """A Delta that recognises its own value, without comparing all numbers at every step."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return super().rsample(sample_shape) if sample_shape else self.v

    def log_prob(self, x: Tensor) -> Tensor:
        if x is self.v:
            return cast("Tensor", self.log_density).expand(self.batch_shape)
        return super().log_prob(x)
