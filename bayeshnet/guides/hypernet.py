"""A guide for any Pyro model whose posterior is a hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeshnet.checks import require_count
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.errors import UsageError
from bayeshnet.families._build import BodyOptions, BodyStart, Mixture, build_body
from bayeshnet.families._default_hnet import HnetOrBuilder
from bayeshnet.families._warm_start import move_body
from bayeshnet.families.base import Body, HypernetBody
from bayeshnet.families.unit_body import unit_layout
from bayeshnet.guides._hooks import finish, prepare
from bayeshnet.guides._pseudo_targets import move_pseudo_targets
from bayeshnet.guides.base import Guide
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.inducing.build import Conditional, ConditionalPlan, place_inducing, plan_or_reason
from bayeshnet.inducing.conditional_weights import ConditionalWeights
from bayeshnet.inducing.layers import InducingLayers
from bayeshnet.inducing.resampling import best_power, checked_num_candidates, score_candidates
from bayeshnet.mnets.param_table import num_weights
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.sites.arguments import call_arguments, check_rows
from bayeshnet.sites.kept_state import restored
from bayeshnet.sites.prior import PriorStart, prior_start

__all__ = ["AutoHypernet"]


class AutoHypernet(Guide):
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
        hnet: A function from target shapes (a list of lists of int) to a hypernetwork, or one with as many outputs.
            Without a perturbation wrapper it gets one with a learned scale per weight. By default an MLP with tanh
            layers and a linear part, which starts injective.
        body: What draws the latents that are not conditional: ``"hypernet"`` (beside conditional layers its noise is
            correlated within each unit), ``"units"`` (a mixture of such noises without a hypernetwork),
            ``"mean_field"`` (independent Gaussians), ``"low_rank"``
            (:class:`~bayeshnet.distributions.MultiplicativeLowRank`), ``"mixture"`` (of independent Gaussians), or a
            :class:`~bayeshnet.infer.Mixture` of any of them.
        num_components: Number of components of ``body="units"`` and ``body="mixture"``, 4 by default; of
            ``body="hypernet"`` beside conditional layers, 1 by default: places and shapes of noise that one
            hypernetwork bends, see :class:`~bayeshnet.distributions.UnitGaussians`.
        conditional: Which linear layers are drawn conditionally: ``"auto"`` (the last one if the model allows it and no
            ``hnet`` is given), ``"last"``, ``"all"``, names of layers (with the last one among them), or None.
        num_inducing: Number of inducing points; by default all rows up to 40, then as the square root of their number.
            They start at random rows of ``example``; :func:`~bayeshnet.fit` takes them from its data where the example
            has too few.
        num_candidates: A draw without gradient is chosen from so many, by how well each explains the inducing points'
            targets; see :class:`~bayeshnet.distributions.ConditionalWeights`. 4 to 32 by default, as their cost
            allows (with a mixture of hypernetworks 1); 1 leaves it out. Training draws are single ones.
        noise_dim: Number n of noise inputs; by default D for up to 64 latents, which then may have any correlations;
            with more latents, with independent noise and in a mixture ``min(20, D)``, beside conditional layers
            ``min(4, D)``. Not with ``hnet``.
        hidden_layers: Widths of the default hypernetwork. Not with ``hnet``.
        noise: Kind of the perturbation: ``"shared"`` (exact density where the sampler does not fold; default of the
            default hypernetwork) or ``"independent"`` (linearised density; default of a network from ``hnet``, which
            may fold). Not with an ``hnet`` that has a perturbation wrapper.
        estimator: An estimator of log q that fits the noise; by default
            :class:`~bayeshnet.entropy.ChangeOfVariables` or :class:`~bayeshnet.entropy.Linearised`.
        init_loc_fn: One of Pyro's per-site initialisation functions for the location. By default weights with a Normal
            prior start at ``0.3`` of its scale around its mean, at random, and other latents at their prior median.
        init_scale: Start of the noise scale, in units of the prior's spread: 0.1 by default. The default hypernetwork
            of 4 latents or fewer starts at 0.5 and at the centre of the prior, to find all modes, unless this or
            ``init_loc_fn`` is given.
        whiten: Use the prior's spread as the scale; otherwise 1.

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
        hnet: HnetOrBuilder | None = None,
        body: Literal["units", "hypernet", "mean_field", "low_rank", "mixture"] | Mixture = "hypernet",
        num_components: int | None = None,
        conditional: Conditional = "auto",
        num_inducing: int | None = None,
        num_candidates: int | None = None,
        noise_dim: int | None = None,
        hidden_layers: Sequence[int] | None = None,
        noise: Literal["shared", "independent"] | None = None,
        estimator: LogDensity | None = None,
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float | None = None,
        whiten: bool = True,
    ) -> None:
        options = BodyOptions(
            body=body,
            num_components=num_components,
            hnet=hnet,
            noise=noise,
            noise_dim=noise_dim,
            hidden_layers=hidden_layers,
            estimator=estimator,
            init_scale=init_scale,
        )
        options.check(whiten=whiten)
        super().__init__(model, example=example, init_loc_fn=init_loc_fn)
        args, kwargs = call_arguments(example, "example")
        start = prior_start(model, self.sites, self.init_loc(), args, kwargs)
        wanted = None if conditional == "auto" and hnet is not None else conditional
        given: Any = {"conditional": wanted, "num_inducing": num_inducing}
        self._plan, self._why_not = plan_or_reason(model, self.sites, start, args, kwargs, **given)
        start = self._placed(start, init_loc_fn, whiten)
        self.register_buffer("loc", start.loc)
        self.register_buffer("scale", start.scale)
        made = self._body(options, start, init_loc_fn)
        # Registered past PyroModule, which would put the parameters into Pyro's global store at every access.
        self._modules["body"] = made
        self._modules["inducing"] = None if self._plan is None else self._plan.inducing
        enough = self._plan is None or self._plan.num_rows >= self._plan.inducing.num_inducing
        # A buffer, so that a guide that was trained, saved and loaded keeps its points in a further fit.
        self.register_buffer("inducing_placed", torch.tensor(enough, device=self.loc.device))
        self.inducing_placed: Tensor
        self.num_candidates = num_candidates
        # Noise that is inferred decides among candidates as much as their fit does; what fits is known after calibrate.
        certain = self._plan is None or self._plan.log_precision is None
        self.register_buffer("candidate_power", torch.full_like(self.loc[0], float(certain)))
        self.candidate_power: Tensor
        # Of a copy, in place of its model's; no part of checkpoints, which are loaded into guides that have a model.
        self.register_buffer("copied_prior_scale", None, persistent=False)
        self.copied_prior_scale: Tensor | None

    # ------------------------------------------------------------------ building

    def _placed(self, start: PriorStart, init_loc_fn: Callable[..., Any] | None, whiten: bool) -> PriorStart:
        """Location and scale of the guide; conditional layers keep those of their prior."""
        loc = start.loc if init_loc_fn is None else self.init_loc()
        scale = start.scale if whiten else torch.ones_like(start.scale)
        if self._plan is not None:
            layout = self._plan.layout
            flags = [torch.full((size,), i in layout.conditional) for i, size in enumerate(layout.sizes)]
            conditional = torch.cat(flags).to(loc.device)
            loc, scale = torch.where(conditional, start.loc, loc), torch.where(conditional, start.scale, scale)
        return PriorStart(loc, scale, start.gaussian)

    def _body(self, options: BodyOptions, start: PriorStart, init_loc_fn: Callable[..., Any] | None) -> Body | None:
        """What draws the latents that are not conditional; None if all are."""
        shapes = self._body_shapes()
        size = num_weights(shapes)
        if size == 0:
            return None
        # A conditional layer can make use of many different features from the beginning.
        spread = 0.3 if self._plan is None else 1.0
        like = self._of_body(start.loc)
        jitter = spread * self._of_body(start.gaussian).to(like) if init_loc_fn is None else torch.zeros_like(like)
        # The components of a mixture look for modes all over the prior, or around the place that was asked for.
        apart = 1.0 if init_loc_fn is None else options.scale
        anywhere = self._plan is None and init_loc_fn is None
        units = None
        if self._plan is not None and isinstance(self.original_model, BayesianModel):
            layout = self._plan.layout
            units = unit_layout(self.original_model.net.param_table, layout.conditional, layout.rest)
        return build_body(options, BodyStart(shapes, like, jitter, apart, units, anywhere))

    def _body_shapes(self) -> list[list[int]]:
        """Shapes of the latents that the body draws."""
        if self._plan is None:
            return self.target_shapes
        layout = self._plan.layout
        shapes = [list(shape) for i, shape in enumerate(layout.shapes) if i not in layout.conditional]
        return [*shapes, [layout.rest]] if layout.rest else shapes

    def _of_body(self, flat: Tensor) -> Tensor:
        """The entries of a vector of all latents that the body draws."""
        if self._plan is None:
            return flat
        layout = self._plan.layout
        parts = flat.split(layout.sizes)
        return torch.cat([part for i, part in enumerate(parts) if i not in layout.conditional])

    # ------------------------------------------------------------------ what there is

    def learned_modules(self) -> dict[str, nn.Module]:
        """Body and inducing points."""
        return {name: module for name in ("body", "inducing") if (module := self._modules[name]) is not None}

    @property
    def body(self) -> Body | None:
        """What draws the latents that are not conditional; None if all are."""
        return self._modules["body"]  # pyright: ignore[reportReturnType]

    @property
    def inducing(self) -> InducingLayers | None:
        """The conditional layers and their inducing points, or None."""
        return self._modules["inducing"]  # pyright: ignore[reportReturnType]

    @property
    def hnet(self) -> HPerturbWrapper:
        """The hypernetwork with its perturbation noise; raises a UsageError if the guide has none."""
        body = self.body
        if not isinstance(body, HypernetBody):
            raise UsageError("hnet: the guide's body is no hypernetwork; build it with body='hypernet'.")
        return body.hnet

    def __repr__(self) -> str:
        parts = [f"latent_dim={self.latent_dim}", f"sites={len(self.sites)}"]
        if self.body is not None:
            parts.append(self.body.describe())
        if self._plan is not None:
            names = ", ".join(self._plan.names)
            parts.append(f"conditional=[{names}], num_inducing={self._plan.inducing.num_inducing}")
            parts.append(f"num_candidates={self.num_candidates}")
        elif self._why_not is not None:
            parts.append(f"conditional=None ({self._why_not})")
        return f"AutoHypernet({', '.join(parts)})"

    @property
    def estimator(self) -> LogDensity | None:
        """The estimator of the body's log q; None where it is exact."""
        return self.body.estimator if isinstance(self.body, HypernetBody) else None

    @property
    def num_candidates(self) -> int:
        """A draw without gradient is chosen from so many; may be set."""
        return vars(self)["num_candidates"]

    @num_candidates.setter
    def num_candidates(self, number: int | None) -> None:
        vars(self)["num_candidates"] = checked_num_candidates(number, self._plan, self.body)

    @property
    def clip_norm(self) -> float | None:
        """Bound on the norm of the gradient that :func:`~bayeshnet.fit` keeps where it is given none; None for none."""
        return None if self.body is None else self.body.clip_norm

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups: what acts on many weights at once, a generator's hidden layers, takes smaller steps."""
        slow = [] if self.body is None else self.body.slow_params()
        known = {id(param) for part in slow for param in part.params}
        fast = [param for param in self.parameters() if id(param) not in known]
        groups: list[dict[str, Any]] = [{"params": fast, "lr": lr}]
        for part in slow:
            group = {"params": part.params, "lr": part.rate * lr}
            groups.append({**group, "decay": part.decay} if part.decay else group)
        return groups

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
        if self.body is not None:
            move_body(self.body, self._of_body((mean - self.loc) / self.scale), self._of_body(std / self.scale))

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check how far the density of the body can be trusted: folding, or the gap to importance sampling.

        Everything else in the guide is exact.
        """
        require_count("num_samples", num_samples, least=2)
        return Diagnosis({}) if self.body is None else self.body.diagnose(num_samples=num_samples, thorough=thorough)

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
        if inducing is None or not isinstance(model, BayesianModel):
            raise UsageError(f"place_inducing: {_UNPLACED}")
        place_inducing(model, inducing, x, y, max(len(x), model.dataset_size or 0))
        self.inducing_placed.fill_(True)

    def calibrate(self, x: Tensor, y: Tensor) -> float:
        """Choose how far the inducing points are trusted in choosing among candidates: by the ELBO, on these data.

        :func:`~bayeshnet.fit` does it at its end. The result is the buffer ``candidate_power``, from 0 (one candidate
        is as good as another) to 1; it stays as it was if this is interrupted.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets.

        Raises:
            ValueError: If the model refuses these data.
            RuntimeError: If no layer is conditional.
        """
        model = self.original_model
        if self.inducing is None or not isinstance(model, BayesianModel):
            raise UsageError(f"calibrate: {_UNPLACED}")
        check_rows(model, x, y)
        with restored([self.candidate_power], on_error=True):
            self.candidate_power.fill_(1.0)
            if self.num_candidates > 1:
                posterior = cast("ConditionalWeights", self.get_posterior())
                ratios, weights = score_candidates(model, posterior, self.sites, x, y)
                self.candidate_power.fill_(best_power(ratios, weights, self.num_candidates))
        return float(self.candidate_power)

    @property
    def wants_rows(self) -> int:
        """Number of rows that :meth:`place_inducing` would make use of; 0 where it need not be called any more."""
        return 0 if self.inducing is None or bool(self.inducing_placed) else self.inducing.num_inducing

    # ------------------------------------------------------------------ the guide

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The distribution over all latents, flattened and unconstrained: a draw is ``[D]``."""
        body, inducing = self.body, self.inducing
        if body is not None and (inducing is None or self._plan is None):
            return body.distribution(self.loc, self.scale)
        plan = cast("ConditionalPlan", self._plan)
        return ConditionalWeights(
            None if body is None else body.distribution(),
            cast("InducingLayers", inducing),
            plan.layout,
            loc=self.loc,
            scale=self.scale,
            log_precision=plan.log_precision,
            prior_scale=self._prior_scale(),
            num_candidates=self.num_candidates,
            power=self.candidate_power,
            validate_args=False,
        )

    def _prior_scale(self) -> Tensor | None:
        """Prior standard deviations of the body's latents, whitened, if learning has changed them and they matter."""
        model = self.original_model
        if torch.is_grad_enabled() or self._plan is None:
            return None
        if model is None:  # a copy
            return self.copied_prior_scale
        if not isinstance(model, BayesianModel) or model.learned_scales is None:
            return None
        priors: Any = model.weight_priors()
        learned = torch.cat([prior.stddev.reshape(-1) for prior in priors.values()])
        return self._of_body(torch.cat([learned, self.scale[len(learned) :]]) / self.scale)

    @torch.no_grad()
    def __getstate__(self) -> dict[str, Any]:
        # The copy has no model to ask, and draws with what the model has learned so far.
        state = super().__getstate__()
        scale = self._prior_scale()
        return {**state, "_buffers": {**state["_buffers"], "copied_prior_scale": scale}}


_UNPLACED = "the guide has no conditional layers, or is a copy without its model; guide.attach(model) gives it one."
