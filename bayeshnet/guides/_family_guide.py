"""A guide that draws its latents from a variational family, beside layers that are conditional on inducing points."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from bayeshnet.checks import require_count
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.errors import ArgumentTypeError, UsageError
from bayeshnet.families.base import Family
from bayeshnet.guides._building import unconditional
from bayeshnet.guides._pseudo_targets import move_pseudo_targets
from bayeshnet.guides.base import Guide
from bayeshnet.inducing.build import ConditionalPlan
from bayeshnet.inducing.conditional_weights import ConditionalWeights
from bayeshnet.inducing.layers import InducingLayers
from bayeshnet.inducing.placement import affordable_inducing, place_inducing
from bayeshnet.inducing.resampling import CALIBRATION_ROWS, best_exponent, checked_num_proposals, score_proposals
from bayeshnet.inducing.shared_points import share_points
from bayeshnet.models.capabilities import has_network
from bayeshnet.sites.kept_state import restored
from bayeshnet.sites.rows import check_rows, first_row_data, first_rows

__all__ = ["FamilyGuide"]

_UNPLACED = "the guide has no conditional layers, or is a copy without its model; guide.attach(model) gives it one."


class FamilyGuide(Guide):
    """A guide with a variational family and, perhaps, conditional layers; a constructor calls :meth:`_set_parts`."""

    # Whether the number of inducing points was chosen by the cost of a step, which a fit knows better.
    _adapts: bool = False

    def _set_parts(
        self, plan: ConditionalPlan | None, family: Family | None, num_proposals: int | None, gaussian: Tensor
    ) -> None:
        """Register a built family and the layers of the plan, and what belongs to them.

        Args:
            plan: The conditional layers; None if there are none.
            family: What draws the latents that are not conditional; None if all are conditional.
            num_proposals: Number of proposals of importance resampling; the default if None.
            gaussian: Where the prior is Gaussian ``[D]``.
        """
        self._plan = plan
        # Registered past PyroModule, which would put the parameters into Pyro's global store at every access.
        self._modules["family"] = family
        self._modules["inducing"] = None if plan is None else plan.inducing
        enough = plan is None or plan.num_rows >= plan.inducing.num_inducing
        # A buffer, so that a guide that was trained, saved and loaded keeps its points in a further fit.
        self.register_buffer("inducing_placed", torch.tensor(enough, device=self.loc.device))
        self.inducing_placed: Tensor
        self.num_proposals = num_proposals
        # Noise that is inferred weighs in as much as the fit of a proposal; what fits is known after calibrate.
        certain = plan is None or plan.log_precision is None
        self.register_buffer("tempering_exponent", torch.full_like(self.loc[0], float(certain)))
        self.tempering_exponent: Tensor
        # Of a copy, in place of its model's; no part of checkpoints, which are loaded into guides that have a model.
        self.register_buffer("copied_prior_scale", None, persistent=False)
        self.copied_prior_scale: Tensor | None
        # Spreads that are no standard deviations were found by draws of the prior, with these factors.
        scales: Any = None if plan is None else getattr(self.original_model, "learned_scales", None)
        factors = None if scales is None else scales.log_factors().detach()
        known = factors is None or bool(gaussian[: len(factors)].all())  # of the weights, which come first
        self.register_buffer("built_log_factors", None if known else factors)
        self.built_log_factors: Tensor | None

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

    def expect_batch(self, rows: int) -> None:
        """See the base class; before a first fit alone, as what was learned is not dropped."""
        plan, affordable = self._plan, max(1, affordable_inducing(rows))
        if self._adapts and plan is not None and plan.inducing.num_inducing > affordable:
            plan.inducing.keep(affordable)
            self._plan = replace(plan, step_rows=rows)
            self.inducing_placed.fill_(plan.num_rows >= affordable)

    def attach(self, model: Callable[..., Any]) -> None:
        """As in the base class; what comes before a conditional last layer then has the model's own learned points."""
        super().attach(model)
        self._share_points(model)

    @contextlib.contextmanager
    def attached(self, model: Callable[..., Any]) -> Generator[None]:
        """As in the base class, and with the model's learned points before a conditional last layer."""
        with super().attached(model):
            before = self._share_points(model)
            try:
                self._check_points()
                yield
            finally:
                if before and self.inducing is not None:
                    share_points(self.inducing, before)

    def _share_points(self, model: Any) -> dict[str, nn.Parameter]:
        if self.inducing is None or self.inducing.head_body is None or not has_network(model):
            return {}
        net: Any = model.net
        return share_points(self.inducing, net.learned_values()) if hasattr(net, "learned_values") else {}

    def _check_points(self) -> None:
        """Raise if learned points and pseudo-inputs are of different dtypes: model or guide alone was converted."""
        body = None if self.inducing is None else self.inducing.head_body
        found = set() if body is None else {point.dtype for point in body.parameters()}
        if self.inducing is not None and found and self.inducing.inputs.dtype not in found:
            raise ArgumentTypeError(
                f"guide: has dtype {self.inducing.inputs.dtype}, the model's learned points {found.pop()}; convert "
                "both of them, model.double() and guide.double()."
            )

    def begin_fit(self, model: Callable[..., Any], data: Any) -> None:
        """As in the base class; and attach the model, and place inducing points that have no rows of their own yet."""
        self._adapts = False
        if has_network(model):
            self.attach(model)  # it may be a copy of the one that the guide was built for
            self._check_points()
        if self.wants_rows and (rows := first_rows(data, self.wants_rows, model)) is not None:
            self.place_inducing(*rows)
        super().begin_fit(model, data)

    def end_fit(self, model: Callable[..., Any], data: Any) -> None:
        """As in the base class; and calibrate importance resampling, check the density, and warn of what is wrong.

        Both draw random numbers; the caller's stream goes on as if they had not.
        """
        super().end_fit(model, data)
        if self.num_proposals > 1 and self.inducing is not None:
            with torch.random.fork_rng(devices=[]):
                rows = first_rows(data, CALIBRATION_ROWS, model)
                if rows is not None and has_network(self.original_model):
                    self.calibrate(*rows, **first_row_data(data, CALIBRATION_ROWS, model))
        with torch.random.fork_rng(devices=[]):
            diagnosis = self.diagnose(num_samples=64, thorough=False)
        for advice in diagnosis.advice:
            warnings.warn(advice, diagnosis.category, stacklevel=stacklevel_of_user())

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

    def place_inducing(self, x: Any, y: Any) -> None:
        """Move the inducing points to random rows of these data, in place.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets.

        Raises:
            ArgumentError: If the model does not accept these data.
            UsageError: If no layer is conditional.
        """
        inducing, model = self.inducing, self.original_model
        if inducing is None or not has_network(model):
            raise UsageError(f"place_inducing: {_UNPLACED}")
        x, y = model.as_inputs(x), model.as_targets(y)
        place_inducing(model, inducing, x, y, max(len(x), model.dataset_size or 0))
        self.inducing_placed.fill_(True)

    def calibrate(self, x: Any, y: Any, **of_rows: Tensor) -> float:
        """Choose the tempering exponent of importance resampling: by the ELBO, on these data.

        :meth:`end_fit` does it. The result is the buffer ``tempering_exponent``, from 0 (all proposals weigh the same)
        to 1 (the inducing points are trusted like the data); it stays as it was if this is interrupted.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets.
            of_rows: What the model takes of each row beside them: ``weight``, ``noise``, ``exposure``.

        Returns:
            The exponent.

        Raises:
            ArgumentError: If the model does not accept these data.
            UsageError: If no layer is conditional.
        """
        model = self.original_model
        if self.inducing is None or not has_network(model):
            raise UsageError(f"calibrate: {_UNPLACED}")
        x, y = model.as_inputs(x), model.as_targets(y)
        check_rows(model, x, y)
        with restored([self.tempering_exponent], on_error=True):
            self.tempering_exponent.fill_(1.0)
            if self.num_proposals > 1:
                posterior = cast("ConditionalWeights", self.get_posterior())
                ratios, weights = score_proposals(model, posterior, self.sites, x, y, **of_rows)
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

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """Return the bijection of the family; see the base class.

        Raises:
            UsageError: If layers are conditional, or the family is no bijection of noise.
        """
        if self._plan is not None or self.family is None:
            names = () if self._plan is None else self._plan.names
            raise UsageError(
                f"get_transform: the guide draws {', '.join(names)} conditionally on inducing points, by choice among "
                "proposals, which is no bijection of noise; build it with conditional=None."
            )
        return self.family.noise_transform(self.loc, self.scale)

    def _prior_scale(self) -> Tensor | None:
        """Prior standard deviations of the family's latents, whitened, if learning has changed them and they matter."""
        model = self.original_model
        if self._plan is None:
            return None
        if model is None:  # a copy
            return self.copied_prior_scale
        if getattr(model, "learned_scales", None) is None or not has_network(model):
            return None
        if self.built_log_factors is not None:
            scales: Any = model.learned_scales
            ratio = (scales.log_factors() - self.built_log_factors).exp()
            rest = ratio.new_ones(len(self.scale) - len(ratio))
            return unconditional(torch.cat([ratio, rest]), self._plan.layout)
        priors: Any = model.weight_priors()
        learned = torch.cat([prior.stddev.reshape(-1) for prior in priors.values()])
        return unconditional(torch.cat([learned, self.scale[len(learned) :]]) / self.scale, self._plan.layout)

    @torch.no_grad()
    def __getstate__(self) -> dict[str, Any]:
        # The copy has no model to ask, and draws with what the model has learned so far.
        state = super().__getstate__()
        scale = self._prior_scale()
        return {**state, "_buffers": {**state["_buffers"], "copied_prior_scale": scale}}
