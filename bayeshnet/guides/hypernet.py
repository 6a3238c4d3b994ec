"""A guide for any Pyro model whose posterior is a hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bayeshnet.entropy.protocol import LogDensity
from bayeshnet.errors import UsageError
from bayeshnet.families.base import Family
from bayeshnet.families.hypernet import HnetOrBuilder, Hypernet
from bayeshnet.families.mean_field import MeanField
from bayeshnet.guides._building import built_family, check_start, family_from, family_start, whitened
from bayeshnet.guides._by_size import is_large, refuse_family, why_by_size
from bayeshnet.guides._old_options import OldNames, with_old_options
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.inducing.build import Conditional, plan_or_reason
from bayeshnet.sites.prior import prior_start

__all__ = ["AutoHypernet"]


class AutoHypernet(OldNames):
    r"""Automatic guide whose draws come from a hypernetwork fed with noise.

    All latents of the model, network weights, hierarchical scales or both, are drawn together, in unconstrained
    coordinates, as

    .. math:: u = \mathrm{loc} + \mathrm{scale} \cdot (h(z) + \sigma e)

    with fixed loc and scale, the centre and spread of the prior (which puts all coordinates on one footing for the
    optimiser), and a learned hypernetwork h and noise scale sigma. Correlations reach across all latents, and the
    posterior may be curved or multimodal.

    For a :class:`~bayeshnet.BayesianModel` whose network ends in a linear layer with a Gaussian prior, that layer is
    drawn conditionally on the others instead: exactly, given learned pseudo-observations at inducing points
    (:class:`~bayeshnet.inducing.ConditionalWeights`). ``repr`` says what was chosen.

    The guide is built at once; its parameters live in the module, so two guides never share any. It works under
    ``Trace_ELBO``, ``TraceMeanField_ELBO`` and ``RenyiELBO``, with vectorised particles, and in ``Predictive``,
    parallel or not.

    Args:
        model: Any Pyro model whose latents are continuous; a :class:`~bayeshnet.BayesianModel`, for instance.
        example: The model's arguments, which the guide is built from: a tuple of positional ones, a mapping of keyword
            ones, or one tensor. With observations, as for training.
        family: What draws the latents that are not conditional: a :class:`~bayeshnet.families.Family` with its
            settings, such as ``families.Mixture(families.LowRank(rank=20), 8)``, or the short form of one:
            ``"hypernet"``, ``"block_gaussian"``, ``"mean_field"``, ``"low_rank"``, ``"mixture"``. By default,
            ``"auto"``, a hypernetwork for up to 100,000 latents, and the mean-field family with 2 parameters for each
            beyond that.
        hnet: Short for ``family=families.Hypernet(hnet)``: a function from target shapes (a list of lists of int) to a
            hypernetwork, or one with as many outputs.
        conditional: Which linear layers are drawn conditionally: ``"auto"`` (the last one if the model allows it and
            the family is not one with a hypernetwork of your own), ``"last"``, ``"all"``, names of layers (with the
            last one among them), or None.
        num_inducing: Number of inducing points; by default all rows up to 40, then as the square root of their number;
            for more than 100,000 latents at most one for ten rows of a step, so that they cost a tenth of it at most
            (see :meth:`expect_batch`). They start at random rows of ``example``; :meth:`begin_fit` takes them from the
            data where the example has too few.
        num_proposals: A draw without gradient is resampled from so many proposals, by how well each explains the
            inducing points' targets; see :class:`~bayeshnet.inducing.ConditionalWeights`. 4 to 32 by default, as their
            cost allows (1 with a mixture of hypernetworks and for more than 100,000 latents); 1 leaves it out. Training
            draws are single ones.
        init_loc_fn: One of Pyro's per-site initialisation functions for the location. By default weights with a Normal
            prior start at ``0.3`` of its scale around its mean, at random, and other latents at their prior median;
            before conditional layers, and where the family is chosen for its size, at draws from the prior.
        init_scale: Start of the standard deviations, in units of the prior's spread: 0.1 by default. The default
            hypernetwork of 4 latents or fewer starts at 0.5 and at the centre of the prior, to find all modes, unless
            this or ``init_loc_fn`` is given.
        whiten: Use the prior's spread as the scale; otherwise 1.
        renamed: Old names of options, which go in the next version.

    Raises:
        ArgumentError: If latents are discrete or absent, the data hold NaN or infinite values, or the settings of the
            family do not fit the latents, or what is learned does not fit into the memory that there is.
        ArgumentTypeError: If an argument is of another type.
        DensityError: If the hypernetwork has batch norm or dropout, so that its draws have no density.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
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
        family: Family | str = "auto",
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
        asked = family_from(family, hnet)
        check_start(init_scale=init_scale, whiten=whiten)
        super().__init__(model, example=example, init_loc_fn=init_loc_fn)
        args, kwargs = self.example_arguments()
        init_loc = None if init_loc_fn is None else self.loc
        prior = prior_start(model, self.sites, self.loc, args, kwargs)
        large = is_large(self.latent_dim)
        chosen = asked or (MeanField() if large else Hypernet())
        wanted = None if conditional == "auto" and chosen.draws_all else conditional
        options: Any = {"conditional": wanted, "num_inducing": num_inducing, "large": large}
        plan, self._why_not = plan_or_reason(model, self.sites, prior, args, kwargs, **options)
        layout = None if plan is None else plan.layout
        whitening = whitened(prior, layout, init_loc=init_loc, whiten=whiten)
        self.loc, self.scale = whitening.loc, whitening.scale
        apart = 1.0 if asked is None and large else None
        start = family_start(model, whitening, layout, self.target_shapes, init_loc is not None, init_scale, apart)
        refuse_family(chosen, start, self.latent_dim)
        self._why_family = why_by_size(start, self.latent_dim) if asked is None and large else None
        self._adapts = large and num_inducing is None
        self._set_parts(plan, built_family(chosen, start), num_proposals, prior.gaussian)

    # ------------------------------------------------------------------ what there is

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`; what was left open as it was chosen."""
        plan = self._plan
        return {
            "family": self.family,
            "conditional": None if plan is None else list(plan.names),
            "num_inducing": None if plan is None else plan.inducing.num_inducing,
            "num_proposals": self.num_proposals,
        }

    @property
    def hnet(self) -> HPerturbWrapper:
        """The hypernetwork with its perturbation noise.

        Raises:
            UsageError: If the family has none.
        """
        if not isinstance(self.family, Hypernet):
            raise UsageError(f"hnet: the guide's family is {self.family}; build it with family='hypernet'.")
        return self.family.hnet

    def choices(self) -> list[str]:
        """See the base class."""
        found: list[str] = []
        if self._why_family is not None and self.family is not None:
            found.append(f"family={self.family.describe()} ({self._why_family})")
        if self._why_not is not None:
            found.append(f"conditional=None ({self._why_not})")
        if self._plan is not None and self._plan.step_rows is not None:
            num, rows = self._plan.inducing.num_inducing, self._plan.step_rows
            found.append(f"num_inducing={num} (a tenth of a step of {rows} rows)")
        return found

    def __repr__(self) -> str:
        parts = [f"latent_dim={self.latent_dim}", f"sites={len(self.sites)}"]
        if self.family is not None:
            why = "" if self._why_family is None else f" ({self._why_family})"
            parts.append(f"family={self.family.describe()}{why}")
        if self._plan is not None:
            names = ", ".join(self._plan.names)
            why = "" if self._plan.step_rows is None else f" (a tenth of a step of {self._plan.step_rows} rows)"
            parts.append(f"conditional=[{names}], num_inducing={self._plan.inducing.num_inducing}{why}")
            parts.append(f"num_proposals={self.num_proposals}")
        elif self._why_not is not None:
            parts.append(f"conditional=None ({self._why_not})")
        return f"AutoHypernet({', '.join(parts)})"

    @property
    def estimator(self) -> LogDensity | None:
        """The estimator of log q of the family; None where it is exact."""
        return self.family.estimator if isinstance(self.family, Hypernet) else None
