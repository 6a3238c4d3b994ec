r"""Hypernetworks fed with noise, with a density."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from bayeshnet.checks import kind_of, require_count
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.path_gradient import PathGradient
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import NoisySampler, percent
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.families._default_hnet import default_hnet, move_hnet, num_parameters, output_params, unbend
from bayeshnet.families._given_hnet import HnetOrBuilder, made_hnet
from bayeshnet.families.base import Family, Start, each_at
from bayeshnet.families.block_gaussian import BlockNoise
from bayeshnet.families.implicit_weights import ImplicitWeights
from bayeshnet.families.noise_transform import NoiseTransform
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper

__all__ = ["HnetOrBuilder", "Hypernet"]

# Few latents can start all over the prior: whoever starts narrow finds one of several modes. With many latents draws
# from the prior fit nothing, and no gradient is of use.
_WIDE_UP_TO, _WIDE = 4, 0.5
# As many noise inputs as latents: on logistic regressions of 30 and 64 weights that gained 2 and 12 nats over 20
# inputs, for 1.2 and 2 times the time. With many more each step learns too little of a D x D matrix. Path gradients
# serve the same few; of many latents the scores do not agree.
_FEW = 64
_NOISE_DIM = 20
_CLIP_NORM = 10.0
_FOLD_DRAWS = 256
# Beside noise of blocks: factor of the learning rate of the hypernetwork, and the decay of its output layer. At fit's
# rate of 0.01 what no gradient holds up falls to 1/e in 130 steps.
_RATE, _RATE_BESIDE_BLOCKS, _DECAY = 0.3, 0.05, 15.0


class Hypernet(Family, short_form="hypernet"):
    r"""Family of the distributions that a hypernetwork makes of noise.

    .. math:: u = h(z) + \sigma e

    with standard normal z and e, of which z is a part of e where the noise is shared. Beside layers that are drawn
    conditionally on inducing points the default hypernetwork bends noise that is correlated within each unit of the
    network,

    .. math:: u = \mu + \sigma \odot T (h(z) + e)

    with block-diagonal T, as in :class:`BlockGaussian`.

    Args:
        hnet: A function from target shapes (a list of lists of int) to a hypernetwork, or one with as many outputs,
            which is then used as it is. Without a perturbation wrapper it gets one with a learned scale per weight. By
            default an MLP with tanh layers and a linear part, which starts injective.
        noise_dim: Number n of noise inputs of the default hypernetwork. By default D for up to 64 latents, which then
            may have any correlations; with more latents, with independent noise and in a mixture ``min(20, D)``, beside
            conditional layers ``min(4, D)``.
        hidden_layers: Widths of the default hypernetwork; (64, 64) by default, (32, 32) beside conditional layers.
        noise: ``"shared"`` (exact density where the sampler is injective; default of the default hypernetwork) or
            ``"independent"`` (linearised density; default of a network from ``hnet``, which need not be injective).
        estimator: An estimator of log q that fits the noise; by default
            :class:`~bayeshnet.entropy.ChangeOfVariables` or :class:`~bayeshnet.entropy.Linearised`.
        num_components: Number of components of the noise beside conditional layers: places and shapes that the one
            hypernetwork bends, see :class:`BlockGaussianWeights`; 1 by default.

    Raises:
        ArgumentError: If arguments exclude each other or are out of range.
        ArgumentTypeError: If one is of another type.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> family = Hypernet(hnet=lambda shapes: HMLP(shapes, uncond_in_size=3, cond_in_size=0, verbose=False))
        >>> family.build(Start([[3, 2]], torch.zeros(6)))
        Hypernet(hnet=HMLP, noise_dim=3, noise='independent', estimator=Linearised(form='density'))
    """

    def __init__(
        self,
        hnet: HnetOrBuilder | None = None,
        *,
        noise_dim: int | None = None,
        hidden_layers: Sequence[int] | None = None,
        noise: Literal["shared", "independent"] | None = None,
        estimator: LogDensity | None = None,
        num_components: int | None = None,
    ) -> None:
        super().__init__()
        of_default = {"noise_dim": noise_dim, "hidden_layers": hidden_layers, "num_components": num_components}
        for name, value in of_default.items() if hnet is not None else ():
            if value is not None:
                raise ArgumentError(
                    f"hnet, {name}: both were given, and {name} describes the default hypernetwork; build yours with "
                    "it inside the function hnet."
                )
        if noise not in (None, "shared", "independent"):
            raise ArgumentError(f"noise: is {noise!r}; pass 'shared' or 'independent'.")
        if estimator is not None and not isinstance(estimator, LogDensity):
            raise ArgumentTypeError(
                f"estimator: is {kind_of(estimator)}; pass an estimator of bayeshnet.entropy, such as "
                "ChangeOfVariables()."
            )
        if num_components is not None:
            require_count("num_components", num_components)
        if hidden_layers is not None:
            if not isinstance(hidden_layers, Sequence):
                raise ArgumentTypeError(
                    f"hidden_layers: is {hidden_layers!r}; pass a list of widths, such as [32, 32]."
                )
            for width in hidden_layers:
                require_count("hidden_layers", width)
        # Together in a tuple, so that neither becomes a submodule before the family is built.
        self._given: tuple[HnetOrBuilder | None, LogDensity | None] | None = (hnet, estimator)
        self._noise_dim, self._hidden_layers = noise_dim, hidden_layers
        self._noise: Literal["shared", "independent"] | None = noise
        self._num_components = num_components

    # ------------------------------------------------------------------ building

    def init_parameters(self, start: Start) -> None:
        """See :meth:`Family.init_parameters`."""
        if self._given is None:
            raise UsageError("family: is a Hypernet that is built already; pass a new Hypernet(...) to each guide.")
        given, estimator = self._given
        # Not kept: a function inside of the guide could not be pickled.
        self._given = None
        blocks = start.blocks if given is None and not start.num_components else None
        if self._num_components is not None and blocks is None:
            raise ArgumentError(
                f"num_components: is {self._num_components}, and no layer is conditional here, or the hypernetwork is "
                "a component of a mixture, so its noise has no components; leave it out, or pass "
                f"family=Mixture('hypernet', {self._num_components})."
            )
        if start.num_components and self._noise == "independent":
            raise ArgumentError(
                "noise: is 'independent', and the hypernetworks of a mixture need a density at each other's draws, "
                "which independent noise does not give; leave out noise."
            )
        noise: BlockNoise | None = None
        if given is not None:
            hnet = self._wrapped(given, start).to(dtype=start.like.dtype, device=start.like.device)
        elif blocks is not None:
            hnet = self._default(start, torch.zeros_like(start.like), None)
            noise = BlockNoise.start(start, self._num_components or 1)
        else:
            wide = start.anywhere and start.size <= _WIDE_UP_TO and not start.num_components
            mean = torch.zeros_like(start.like) if wide else start.mean()
            hnet = self._default(start, mean, _WIDE if wide else start.scale)
        self.hnet = hnet
        self.noise = noise
        self.sampler = NoisySampler(hnet)
        if estimator is None:
            # Missing a root costs no more than log K nats of the density of a mixture of K, and one more start costs
            # time at every step.
            exact = ChangeOfVariables(num_starts=2) if start.num_components else ChangeOfVariables()
            estimator = exact if self.sampler.shared or start.num_components else Linearised()
        self.estimator = estimator
        self.estimator.check(self.sampler)
        # Beside noise of blocks the hypernetwork is a small part; and log q of a component of a mixture enters by its
        # responsibility, which differs from draw to draw.
        alone = noise is None and start.num_components <= 1
        if alone and start.size <= _FEW and isinstance(estimator, ChangeOfVariables) and estimator.path_gradients:
            self.sampler.path_gradient = PathGradient()

    def _sizes(self, start: Start) -> tuple[int, Sequence[int]]:
        """Number of noise inputs and widths of the default hypernetwork."""
        beside = start.blocks is not None and not start.num_components
        whole = not start.num_components and start.size <= _FEW and self._noise != "independent"
        given, most = self._noise_dim, min(4 if beside else start.size if whole else _NOISE_DIM, start.size)
        whole_number = isinstance(given, numbers.Integral) and not isinstance(given, bool)
        if given is not None and (not whole_number or not 1 <= given <= start.size):
            raise ArgumentError(
                f"noise_dim: is {given!r}, and the hypernetwork draws {start.size} latents; pass 1 to {start.size}, or "
                f"leave it out for {most}."
            )
        widths = (32, 32) if beside else (64, 64)
        return most if given is None else int(given), widths if self._hidden_layers is None else self._hidden_layers

    def _default(self, start: Start, mean: Tensor, scale: float | None) -> HPerturbWrapper:
        noise_dim, hidden_layers = self._sizes(start)
        return default_hnet(
            start.shapes,
            noise_dim=noise_dim,
            hidden_layers=hidden_layers,
            noise=self._noise or "shared",
            start=mean,
            start_scale=scale,
            # A few latents that start all over the prior found two modes sooner without gains.
            equalised=scale != _WIDE,
        )

    def num_parameters(self, start: Start) -> int | None:
        """See :meth:`Family.num_parameters`; of the default hypernetwork."""
        if self._given is None or self._given[0] is not None:
            return None
        of_hnet = num_parameters(start.size, *self._sizes(start))
        if start.blocks is not None and not start.num_components:
            return of_hnet + BlockNoise.num_parameters(start, self._num_components or 1)
        return of_hnet + start.size  # the noise scales

    def _wrapped(self, given: HnetOrBuilder, start: Start) -> HPerturbWrapper:
        """The user's hypernetwork, checked, in a perturbation wrapper."""
        hnet = made_hnet(given, start)
        if isinstance(hnet, HPerturbWrapper):
            if self._noise is not None:
                raise ArgumentError(
                    "hnet, noise: both were given, and the hypernetwork has a perturbation wrapper; choose the noise "
                    "there."
                )
            return hnet
        # A constant one (a container of plain tensors) uses no entry of the noise twice: the density is exact.
        constant = getattr(hnet, "uncond_in_size", None) == 0
        fitting: Literal["shared", "independent"] = "shared" if start.num_components or constant else "independent"
        noise = self._noise or fitting
        return HPerturbWrapper(hnet, sigma_noise=start.scale, noise=noise, learn_sigma="per_weight", verbose=False)

    # ------------------------------------------------------------------ the distribution

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> TorchDistribution:
        """See :meth:`Family.distribution`."""
        if self.noise is None:
            return self._implicit(0.0 if loc is None else loc, 1.0 if scale is None else scale)
        return self.noise.distribution(loc, scale, self._implicit())

    def _implicit(self, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> ImplicitWeights:
        # Not validated: it is built at every step, of parts that were checked once.
        return ImplicitWeights(self.sampler, estimator=self.estimator, loc=loc, scale=scale, validate_args=False)

    def noise_transform(self, loc: Tensor, scale: Tensor) -> Transform:
        """See :meth:`Family.noise_transform`: with shared noise the map is one if it does not fold.

        Where the determinant has the sign opposite to that at noise 0, which only a fold can bring about, the
        transform's density is 0, so that a chain stays on one side.

        Raises:
            UsageError: If noise is independent or of blocks, or the map folds at one of 256 draws.
        """
        if self.noise is not None or not self.sampler.shared or not isinstance(self.estimator, ChangeOfVariables):
            return super().noise_transform(loc, scale)
        sampler, estimator, like = self.sampler, self.estimator, self.sampler.sigma
        generator = torch.Generator().manual_seed(0)  # the check takes nothing from the caller's stream
        noise = torch.randn(_FOLD_DRAWS, sampler.latent_dim, generator=generator).to(like)
        with torch.no_grad():
            signs = estimator.slogdet(sampler, torch.cat([torch.zeros_like(noise[:1]), noise]))[0]
        folded = float((signs != signs[0]).double().mean())
        if folded:
            raise UsageError(
                f"get_transform: the hypernetwork folds at {percent(folded)} of its draws, so that it is no bijection "
                "of noise; train it longer with more particles, or build the guide with family='low_rank'."
            )

        def log_det(rows: Tensor) -> Tensor:
            sign, log_abs = estimator.slogdet(sampler, rows[:, : sampler.latent_dim])
            return torch.where(sign == signs[0], log_abs + scale.log().sum(), -torch.inf)

        def values(rows: Tensor) -> Tensor:
            return torch.addcmul(loc, scale, sampler.place(rows[:, : sampler.latent_dim], rows).weights)

        return NoiseTransform(values, log_det)

    def warm_start(self, mean: Tensor, std: Tensor) -> None:
        """See :meth:`Family.warm_start`.

        What moves is the bias of the output layer and the noise scale; the rows of the output layer shrink where they
        alone would spread more than half of the variance asked for. Beside noise of blocks the noise takes mean and
        standard deviation, and what correlates and bends it starts anew.

        Raises:
            UsageError: If the hypernetwork has no bias for each latent, or no learned noise scale for a spread.
        """
        if self.noise is None:
            move_hnet(self.hnet, self.sampler, mean, std)
        else:
            unbend(self.hnet)
            self.noise.warm_start(mean, std)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """See :meth:`Family.param_groups`: what acts on many latents at once takes smaller steps.

        The default hypernetwork does by its own parametrisation, with any optimiser, and is one group with the rest;
        of one of the user's own the layers before the output layer's bias and skip are a group with a smaller rate.
        Beside noise of blocks, which has the right place and scale without it, all of the hypernetwork is, and its
        output layer decays: each of its thousands of weights follows the noise of its gradient and spreads the draws.
        """
        internal = list(self.hnet.internal_params or ())
        if self.noise is not None:
            outputs = output_params(self.hnet)
            hidden = _without(internal, outputs)
            slow = [(hidden, _RATE_BESIDE_BLOCKS, 0.0), (outputs, _RATE_BESIDE_BLOCKS, _DECAY)]
        else:
            direct: Any = getattr(self.sampler.generator, "direct_params", None)
            generator: Any = self.sampler.generator
            if getattr(generator, "gains", None) is not None:
                return each_at([], list(self.parameters()), lr)
            slow = [(_without(generator.internal_params or (), direct() if direct is not None else ()), _RATE, 0.0)]
        known = [param for params, _, _ in slow for param in params]
        return each_at(slow, _without(self.parameters(), known), lr)

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check the hypernetwork; noise of blocks behind it is a linear map, which is injective and exact."""
        return self._implicit().diagnose(num_samples=num_samples, thorough=thorough)

    def describe(self) -> str:
        """See :meth:`Family.describe`."""
        if "hnet" not in self._modules:
            return super().describe()
        parts = [
            f"hnet={type(self.sampler.generator).__name__}",
            f"noise_dim={self.sampler.latent_dim}",
            f"noise={'shared' if self.sampler.shared else 'independent'!r}",
            f"estimator={self.estimator!r}",
        ]
        if self.noise is not None:
            num = len(self.noise.loc)
            parts += ["correlated within units", *([f"num_components={num}"] if num > 1 else [])]
        return f"Hypernet({', '.join(parts)})"

    def settings(self) -> Mapping[str, Any]:
        """See :meth:`Family.settings`; those that are not the default."""
        hnet, estimator = self._given or (None, None)
        given = {
            "hnet": getattr(hnet, "__name__", type(hnet).__name__) if hnet is not None else None,
            "noise_dim": self._noise_dim,
            "hidden_layers": self._hidden_layers,
            "noise": self._noise,
            "estimator": estimator,
            "num_components": self._num_components,
        }
        return {key: value for key, value in given.items() if value is not None}

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`."""
        return self.recorded()

    def facts(self) -> Mapping[str, Any]:
        """See :meth:`Family.facts`; with the estimator, once it is chosen."""
        return {**super().facts(), **({"estimator": self.estimator} if self._given is None else {})}

    # ------------------------------------------------------------------ what a guide asks for

    @property
    def per_draw(self) -> bool:
        """See :meth:`Family.per_draw`."""
        return self.estimator.per_draw

    @property
    def draws_all(self) -> bool:
        """See :meth:`Family.draws_all`: a hypernetwork of the user's own is meant for all latents."""
        return self._given is not None and self._given[0] is not None

    @property
    def closed_form(self) -> bool:
        """See :meth:`Family.closed_form`."""
        return False

    @property
    def clip_norm(self) -> float | None:
        """See :meth:`Family.clip_norm`: near a fold the gradient of the log-determinant is without bound.

        The more latents meet their noise twice, the likelier is a fold. Where only some of very many do, none was seen.
        """
        whole = self.sampler.latent_dim == self.sampler.event_dim
        return _CLIP_NORM if whole and isinstance(self.estimator, ChangeOfVariables) else None


def _without(params: Any, others: Any) -> list[nn.Parameter]:
    known = {id(param) for param in others}
    return [param for param in params if id(param) not in known]
