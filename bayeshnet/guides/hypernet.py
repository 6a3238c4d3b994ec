"""A guide for any Pyro model whose posterior is a hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeshnet.checks import require_count
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.errors import UsageError
from bayeshnet.families.base import Family
from bayeshnet.families.hypernet import HnetOrBuilder, Hypernet
from bayeshnet.guides._building import check_start, family_from, family_start, unconditional, whitened
from bayeshnet.guides._hooks import finish, prepare
from bayeshnet.guides._old_options import OldNames, with_old_options
from bayeshnet.guides._pseudo_targets import move_pseudo_targets
from bayeshnet.guides.base import Guide
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.inducing.build import Conditional, ConditionalPlan, plan_or_reason
from bayeshnet.inducing.conditional_weights import ConditionalWeights
from bayeshnet.inducing.layers import InducingLayers
from bayeshnet.inducing.placement import place_inducing
from bayeshnet.inducing.resampling import best_exponent, checked_num_proposals, score_proposals
from bayeshnet.models.capabilities import has_network
from bayeshnet.sites.arguments import call_arguments, check_rows
from bayeshnet.sites.kept_state import restored
from bayeshnet.sites.prior import prior_start

__all__ = ["AutoHypernet"]


class AutoHypernet(OldNames, Guide):
    r"""Automatic guide whose draws come from a hypernetwork fed with noise.

    All latents of the model, network weights, hierarchical scales or both, are drawn together, in unconstrained
    coordinates, as

    .. math:: u = \mathrm{loc} + \mathrm{scale} \cdot (h(z) + \sigma e)

    with fixed loc and scale, the centre and spread of the prior (which puts all coordinates on one footing for the
    optimiser), and a learned hypernetwork h and noise scale sigma. Correlations reach across all latents, and the
    posterior may be curved or multimodal.

    For a :class:`~bayeshnet.BayesianModel` whose network ends in a linear layer with a Gaussian prior, that layer is
    drawn conditionally on the others instead: exactly, given learned pseudo-observations at inducing points
    (:class:`~bayeshnet.distributions.ConditionalWeights`). ``repr`` says what was chosen.

    The guide is built at once; its parameters live in the module, so two guides never share any. It works under
    ``Trace_ELBO``, ``TraceMeanField_ELBO`` and ``RenyiELBO``, with vectorised particles, and in ``Predictive``,
    parallel or not.

    Args:
        model: Any Pyro model whose latents are continuous; a :class:`~bayeshnet.BayesianModel`, for instance.
        example: The model's arguments, which the guide is built from: a tuple of positional ones, a mapping of keyword
            ones, or one tensor. With observations, as for training.
        family: What draws the latents that are not conditional: a :class:`~bayeshnet.families.Family` with its
            settings, such as ``families.Mixture(families.LowRank(rank=20), 8)``, or the short form of one:
            ``"hypernet"``, ``"block_gaussian"``, ``"mean_field"``, ``"low_rank"``, ``"mixture"``.
        hnet: Short for ``family=families.Hypernet(hnet)``: a function from target shapes (a list of lists of int) to a
            hypernetwork, or one with as many outputs.
        conditional: Which linear layers are drawn conditionally: ``"auto"`` (the last one if the model allows it and
            the family is not one with a hypernetwork of your own), ``"last"``, ``"all"``, names of layers (with the
            last one among them), or None.
        num_inducing: Number of inducing points; by default all rows up to 40, then as the square root of their number.
            They start at random rows of ``example``; :meth:`begin_fit` takes them from the data where the example has
            too few.
        num_proposals: A draw without gradient is resampled from so many proposals, by how well each explains the
            inducing points' targets; see :class:`~bayeshnet.inducing.ConditionalWeights`. 4 to 32 by default, as their
            cost allows (with a mixture of hypernetworks 1); 1 leaves it out. Training draws are single ones.
        init_loc_fn: One of Pyro's per-site initialisation functions for the location. By default weights with a Normal
            prior start at ``0.3`` of its scale around its mean, at random, and other latents at their prior median.
        init_scale: Start of the standard deviations, in units of the prior's spread: 0.1 by default. The default
            hypernetwork of 4 latents or fewer starts at 0.5 and at the centre of the prior, to find all modes, unless
            this or ``init_loc_fn`` is given.
        whiten: Use the prior's spread as the scale; otherwise 1.
        renamed: Old names of options, which go in the next version.

    Raises:
        ValueError: If latents are discrete or absent, ``noise_dim`` exceeds their number, the data hold NaN or
            infinite values, or the hypernetwork does not produce what is asked for.
        TypeError: If an argument is of another type.
        RuntimeError: If the hypernetwork has batch norm or dropout, so that its draws have no density.

    Example:
        >>> import pyro, pyro.distributions as dist
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
        family: Family | str = "hypernet",
        hnet: HnetOrBuilder | None = None,
        conditional: Conditional = "auto",
        num_inducing: int | None = None,
        num_proposals: int | None = None,
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float | None = None,
        whiten: bool = True,
        **renamed: Any,
    ) -> None:
        if renamed:
            family, hnet, num_proposals = with_old_options(family, hnet, num_proposals, renamed)
        chosen = family_from(family, hnet)
        check_start(init_scale=init_scale, whiten=whiten)
        super().__init__(model, example=example, init_loc_fn=init_loc_fn)
        args, kwargs = call_arguments(example, "example")
        prior = prior_start(model, self.sites, self.init_loc(), args, kwargs)
        wanted = None if conditional == "auto" and chosen.draws_all else conditional
        options: Any = {"conditional": wanted, "num_inducing": num_inducing}
        self._plan, self._why_not = plan_or_reason(model, self.sites, prior, args, kwargs, **options)
        layout = None if self._plan is None else self._plan.layout
        init_loc = None if init_loc_fn is None else self.init_loc()
        whitening = whitened(prior, layout, init_loc=init_loc, whiten=whiten)
        self.register_buffer("loc", whitening.loc)
        self.register_buffer("scale", whitening.scale)
        self.loc: Tensor
        self.scale: Tensor
        start = family_start(model, whitening, layout, self.target_shapes, init_loc is not None, init_scale)
        # Registered past PyroModule, which would put the parameters into Pyro's global store at every access.
        self._modules["family"] = None if start.size == 0 else chosen.build(start)
        self._modules["inducing"] = None if self._plan is None else self._plan.inducing
        enough = self._plan is None or self._plan.num_rows >= self._plan.inducing.num_inducing
        # A buffer, so that a guide that was trained, saved and loaded keeps its points in a further fit.
        self.register_buffer("inducing_placed", torch.tensor(enough, device=self.loc.device))
        self.inducing_placed: Tensor
        self.num_proposals = num_proposals
        # Noise that is inferred weighs in as much as the fit of a proposal; what fits is known after calibrate.
        certain = self._plan is None or self._plan.log_precision is None
        self.register_buffer("tempering_exponent", torch.full_like(self.loc[0], float(certain)))
        self.tempering_exponent: Tensor
        # Of a copy, in place of its model's; no part of checkpoints, which are loaded into guides that have a model.
        self.register_buffer("copied_prior_scale", None, persistent=False)
        self.copied_prior_scale: Tensor | None

    # ------------------------------------------------------------------ what there is

    def learned_modules(self) -> dict[str, nn.Module]:
        """Family and inducing points."""
        return {name: module for name in ("family", "inducing") if (module := self._modules[name]) is not None}

    @property
    def family(self) -> Family | None:
        """What draws the latents that are not conditional, built; None if all are conditional."""
        return self._modules["family"]  # pyright: ignore[reportReturnType]

    @property
    def inducing(self) -> InducingLayers | None:
        """The conditional layers and their inducing points, or None."""
        return self._modules["inducing"]  # pyright: ignore[reportReturnType]

    @property
    def hnet(self) -> HPerturbWrapper:
        """The hypernetwork with its perturbation noise.

        Raises:
            UsageError: If the family has none.
        """
        if not isinstance(self.family, Hypernet):
            raise UsageError(f"hnet: the guide's family is {self.family}; build it with family='hypernet'.")
        return self.family.hnet

    def __repr__(self) -> str:
        parts = [f"latent_dim={self.latent_dim}", f"sites={len(self.sites)}"]
        if self.family is not None:
            parts.append(f"family={self.family.describe()}")
        if self._plan is not None:
            names = ", ".join(self._plan.names)
            parts.append(f"conditional=[{names}], num_inducing={self._plan.inducing.num_inducing}")
            parts.append(f"num_proposals={self.num_proposals}")
        elif self._why_not is not None:
            parts.append(f"conditional=None ({self._why_not})")
        return f"AutoHypernet({', '.join(parts)})"

    @property
    def estimator(self) -> LogDensity | None:
        """The estimator of log q of the family; None where it is exact."""
        return self.family.estimator if isinstance(self.family, Hypernet) else None

    @property
    def num_proposals(self) -> int:
        """Number of proposals that a draw without gradient is resampled from; may be set."""
        return vars(self)["num_proposals"]

    @num_proposals.setter
    def num_proposals(self, number: int | None) -> None:
        vars(self)["num_proposals"] = checked_num_proposals(number, self._plan, self.family)

    @property
    def clip_norm(self) -> float | None:
        """Bound on the norm of the gradient that :func:`~bayeshnet.fit` keeps where it is given none; None for none."""
        return None if self.family is None else self.family.clip_norm

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser: what acts on many weights at once takes smaller steps than ``lr``.

        A generator's hidden layers want smaller steps than parameters of one weight. ``decay`` of a group, where there
        is one, is that of :func:`~bayeshnet.fit`: its parameters shrink by the factor ``1 - lr * decay`` at each step.
        """
        groups = [] if self.family is None else self.family.param_groups(lr)
        known = {id(param) for group in groups for param in group["params"]}
        others = [param for param in self.parameters() if id(param) not in known]
        return [{"params": others, "lr": lr}, *groups] if others else groups

    def begin_fit(self, model: Callable[..., Any], data: Any) -> None:
        """As in the base class; and attach the model, and place inducing points that have no rows of their own yet."""
        prepare(self, model, data)
        super().begin_fit(model, data)

    def end_fit(self, model: Callable[..., Any], data: Any) -> None:
        """As in the base class; and calibrate importance resampling, check the density, and warn of what is wrong."""
        super().end_fit(model, data)
        finish(self, data)

    @torch.no_grad()
    def move_to(self, mean: Tensor, std: Tensor | None = None, draws: Mapping[str, Tensor] | None = None) -> None:
        """Move the family, and the pseudo-targets of conditional layers; see the base class."""
        if self._plan is not None and move_pseudo_targets(self, self._plan, mean, draws):
            self.inducing_placed.fill_(True)
        std = torch.full_like(mean, torch.nan) if std is None else std
        if self.family is not None:
            layout = None if self._plan is None else self._plan.layout
            means, stds = (mean - self.loc) / self.scale, std / self.scale
            self.family.warm_start(unconditional(means, layout), unconditional(stds, layout))

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check how far the density of the family can be trusted: folding, or the gap to importance sampling.

        Everything else in the guide is exact.
        """
        require_count("num_samples", num_samples, least=2)
        if self.family is None:
            return Diagnosis({})
        return self.family.diagnose(num_samples=num_samples, thorough=thorough)

    def place_inducing(self, x: Tensor, y: Tensor) -> None:
        """Move the inducing points to random rows of these data, in place.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets.

        Raises:
            ValueError: If the model refuses these data.
            RuntimeError: If no layer is conditional.
        """
        inducing, model = self.inducing, self.original_model
        if inducing is None or not has_network(model):
            raise UsageError(f"place_inducing: {_UNPLACED}")
        place_inducing(model, inducing, x, y, max(len(x), model.dataset_size or 0))
        self.inducing_placed.fill_(True)

    def calibrate(self, x: Tensor, y: Tensor) -> float:
        """Choose the tempering exponent of importance resampling: by the ELBO, on these data.

        :meth:`end_fit` does it. The result is the buffer ``tempering_exponent``, from 0 (all proposals weigh the same)
        to 1 (the inducing points are trusted like the data); it stays as it was if this is interrupted.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets.

        Returns:
            The exponent.

        Raises:
            ArgumentError: If the model does not accept these data.
            UsageError: If no layer is conditional.
        """
        model = self.original_model
        if self.inducing is None or not has_network(model):
            raise UsageError(f"calibrate: {_UNPLACED}")
        check_rows(model, x, y)
        with restored([self.tempering_exponent], on_error=True):
            self.tempering_exponent.fill_(1.0)
            if self.num_proposals > 1:
                posterior = cast("ConditionalWeights", self.get_posterior())
                ratios, weights = score_proposals(model, posterior, self.sites, x, y)
                self.tempering_exponent.fill_(best_exponent(ratios, weights, self.num_proposals))
        return float(self.tempering_exponent)

    @property
    def wants_rows(self) -> int:
        """Number of rows that :meth:`place_inducing` would make use of; 0 where it need not be called any more."""
        return 0 if self.inducing is None or bool(self.inducing_placed) else self.inducing.num_inducing

    # ------------------------------------------------------------------ the guide

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The distribution over all latents, flattened and unconstrained: a draw is ``[D]``."""
        family, inducing = self.family, self.inducing
        if family is not None and (inducing is None or self._plan is None):
            return family.distribution(self.loc, self.scale)
        plan = cast("ConditionalPlan", self._plan)
        num_proposals = self.num_proposals
        prior_scale = None if torch.is_grad_enabled() else self._prior_scale()
        return ConditionalWeights(
            None if family is None else family.distribution(),
            cast("InducingLayers", inducing),
            plan.layout,
            loc=self.loc,
            scale=self.scale,
            log_precision=plan.log_precision,
            prior_scale=prior_scale,
            num_proposals=num_proposals,
            tempering_exponent=self.tempering_exponent,
            validate_args=False,
        )

    def _prior_scale(self) -> Tensor | None:
        """Prior standard deviations of the family's latents, whitened, if learning has changed them and they matter."""
        model = self.original_model
        if self._plan is None:
            return None
        if model is None:  # a copy
            return self.copied_prior_scale
        if getattr(model, "learned_scales", None) is None or not has_network(model):
            return None
        priors: Any = model.weight_priors()
        learned = torch.cat([prior.stddev.reshape(-1) for prior in priors.values()])
        return unconditional(torch.cat([learned, self.scale[len(learned) :]]) / self.scale, self._plan.layout)

    @torch.no_grad()
    def __getstate__(self) -> dict[str, Any]:
        # The copy has no model to ask, and draws with what the model has learned so far.
        state = super().__getstate__()
        scale = self._prior_scale()
        return {**state, "_buffers": {**state["_buffers"], "copied_prior_scale": scale}}


_UNPLACED = "the guide has no conditional layers, or is a copy without its model; guide.attach(model) gives it one."
