"""A guide for any Pyro model whose posterior is a hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeshnet.distributions.conditional_weights import ConditionalWeights
from bayeshnet.distributions.inducing import InducingLayers
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.infer.arguments import call_arguments
from bayeshnet.infer.bodies import Body, HypernetBody, LowRankBody, MeanFieldBody
from bayeshnet.infer.conditional_plan import Conditional, ConditionalPlan, NotApplicableError, place_inducing, plan
from bayeshnet.infer.default_hnet import default_hnet
from bayeshnet.infer.flat_guide import FlatGuide
from bayeshnet.infer.latents import PriorStart, prior_start
from bayeshnet.mnets.param_table import num_weights
from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["AutoHypernet"]

_BODIES = ("hypernet", "mean_field", "low_rank")


class AutoHypernet(FlatGuide):
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
        hnet: A function from target shapes (a list of lists of int) to a hypernetwork. One without a perturbation
            wrapper gets one with a learned scale per weight. By default an MLP with tanh layers and a linear part,
            which starts injective.
        body: What draws the latents that are not conditional: ``"hypernet"``, ``"mean_field"`` (independent Gaussians)
            or ``"low_rank"`` (:class:`~bayeshnet.distributions.MultiplicativeLowRank`).
        conditional: Which linear layers are drawn conditionally: ``"auto"`` (the last one if the model allows it and no
            ``hnet`` is given), ``"last"``, ``"all"``, names of layers (with the last one among them), or None.
        num_inducing: Number of inducing points; by default all rows up to 40, then as the square root of their number.
            They start at random rows of ``example``; :func:`~bayeshnet.fit` takes them from its data where the example
            has too few.
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
        hnet: Callable[[list[list[int]]], HyperNetInterface] | None = None,
        body: Literal["hypernet", "mean_field", "low_rank"] = "hypernet",
        conditional: Conditional = "auto",
        num_inducing: int | None = None,
        noise_dim: int | None = None,
        hidden_layers: Sequence[int] | None = None,
        noise: Literal["shared", "independent"] | None = None,
        estimator: LogDensity | None = None,
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float = 0.1,
        whiten: bool = True,
    ) -> None:
        _check_options(
            hnet=hnet,
            body=body,
            noise=noise,
            estimator=estimator,
            init_scale=init_scale,
            default_only={"noise_dim": noise_dim, "hidden_layers": hidden_layers},
        )
        super().__init__(model, example=example, init_loc_fn=init_loc_fn)
        args, kwargs = call_arguments(example, "example")
        start = prior_start(model, self._sites, self._init_loc(), args, kwargs)
        self._plan, self._why_not = self._conditional_plan(model, start, args, kwargs, conditional, num_inducing, hnet)
        start = self._placed(start, init_loc_fn, whiten)
        self.register_buffer("loc", start.loc)
        self.register_buffer("scale", start.scale)
        self.loc: Tensor
        self.scale: Tensor
        made = self._body(body, hnet, start, init_loc_fn, init_scale, noise, noise_dim, hidden_layers, estimator)
        # Registered past PyroModule, which would put the parameters into Pyro's global store at every access.
        self._modules["body"] = made
        self._modules["inducing"] = None if self._plan is None else self._plan.inducing
        self._rows_placed = 0 if self._plan is None else self._plan.num_rows

    # ------------------------------------------------------------------ building

    def _conditional_plan(
        self,
        model: Callable[..., Any],
        start: PriorStart,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        conditional: Conditional,
        num_inducing: int | None,
        hnet: object,
    ) -> tuple[ConditionalPlan | None, str | None]:
        """The conditional layers, or why there are none."""
        if conditional is None or (conditional == "auto" and hnet is not None):
            if num_inducing is not None:
                raise ArgumentError("num_inducing: was given, but no layer is conditional; see `conditional`.")
            return None, None
        try:
            options: Any = {"conditional": conditional, "num_inducing": num_inducing}
            return plan(model, self._sites, start, args, kwargs, **options), None
        except NotApplicableError as error:
            if conditional == "auto":
                return None, str(error)
            raise ArgumentError(
                f"conditional: {conditional!r} is not possible here ({error}); pass conditional=None or 'auto'."
            ) from None

    def _placed(self, start: PriorStart, init_loc_fn: Callable[..., Any] | None, whiten: bool) -> PriorStart:
        """Location and scale of the guide; conditional layers keep those of their prior."""
        loc = start.loc if init_loc_fn is None else self._init_loc()
        scale = start.scale if whiten else torch.ones_like(start.scale)
        if self._plan is not None:
            layout = self._plan.layout
            flags = [torch.full((size,), i in layout.conditional) for i, size in enumerate(layout.sizes)]
            conditional = torch.cat(flags).to(loc.device)
            loc, scale = torch.where(conditional, start.loc, loc), torch.where(conditional, start.scale, scale)
        return PriorStart(loc, scale, start.gaussian)

    def _body(
        self,
        body: str,
        hnet: Callable[[list[list[int]]], HyperNetInterface] | None,
        start: PriorStart,
        init_loc_fn: Callable[..., Any] | None,
        init_scale: float,
        noise: Literal["shared", "independent"] | None,
        noise_dim: int | None,
        hidden_layers: Sequence[int] | None,
        estimator: LogDensity | None,
    ) -> Body | None:
        """What draws the latents that are not conditional; None if all are."""
        shapes = self._body_shapes()
        size = num_weights(shapes)
        if size == 0:
            return None
        if hnet is not None:
            generator = self._own_hnet(hnet, shapes, init_scale, noise)
            return HypernetBody(generator.to(dtype=start.loc.dtype, device=start.loc.device), estimator)
        jitter = self._of_body(start.gaussian) if init_loc_fn is None else torch.zeros(size, dtype=torch.bool)
        # A conditional layer can make use of many different features from the beginning.
        spread = 0.3 if self._plan is None else 1.0
        mean = spread * torch.randn_like(self._of_body(start.loc)) * jitter.to(start.loc.device)
        if body == "mean_field":
            return MeanFieldBody(mean, init_scale)
        if body == "low_rank":
            return LowRankBody(mean, init_scale)
        generator = default_hnet(
            shapes,
            noise_dim=self._noise_dim(noise_dim, size),
            hidden_layers=(64, 64) if hidden_layers is None else hidden_layers,
            noise=noise or "shared",
            start=mean,
            start_scale=init_scale,
        )
        return HypernetBody(generator, estimator)

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

    @staticmethod
    def _noise_dim(noise_dim: int | None, size: int) -> int:
        if noise_dim is None:
            return min(20, size)
        if not 1 <= noise_dim <= size:
            raise ArgumentError(
                f"noise_dim: is {noise_dim}; the hypernetwork draws {size} latent numbers, so pass 1 to {size}, or "
                f"leave it out for {min(20, size)}."
            )
        return noise_dim

    def _own_hnet(
        self,
        build: Callable[[list[list[int]]], HyperNetInterface],
        shapes: list[list[int]],
        init_scale: float,
        noise: Literal["shared", "independent"] | None,
    ) -> HPerturbWrapper:
        hnet = build(shapes)
        if not isinstance(hnet, HyperNetInterface):
            raise ArgumentTypeError(
                f"hnet: returned a {type(hnet).__name__}; it has to return a hypernetwork (HyperNetInterface)."
            )
        size = num_weights(shapes)
        if hnet.num_outputs != size:
            raise ArgumentError(
                f"hnet: produces {hnet.num_outputs} numbers; the latents that it draws are {size}. Build it from the "
                "target shapes that it is called with."
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
        """The hypernetwork with its perturbation noise.

        Raises:
            RuntimeError: If the body is none.
        """
        body = self.body
        if not isinstance(body, HypernetBody):
            raise UsageError("hnet: the guide's body is no hypernetwork; build it with body='hypernet'.")
        return body.hnet

    def __repr__(self) -> str:
        parts = [f"latent_dim={self.latent_dim}", f"sites={len(self._sites)}"]
        if self.body is not None:
            parts.append(self.body.describe())
        if self._plan is not None:
            names = ", ".join(self._plan.names)
            parts.append(f"conditional=[{names}], num_inducing={self._plan.inducing.num_inducing}")
        elif self._why_not is not None:
            parts.append(f"conditional=None ({self._why_not})")
        return f"AutoHypernet({', '.join(parts)})"

    @property
    def estimator(self) -> LogDensity | None:
        """The estimator of the body's log q; None where it is exact."""
        return self.body.estimator if isinstance(self.body, HypernetBody) else None

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser: what acts on all weights at once at 0.3 lr, the rest at ``lr``.

        A generator's hidden layers want smaller steps than parameters of one weight.
        """
        slow = [] if self.body is None else self.body.slow_params()
        known = {id(param) for param in slow}
        fast = [param for param in self.parameters() if id(param) not in known]
        return [{"params": fast, "lr": lr}, {"params": slow, "lr": 0.3 * lr}]

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check how far the density of the body can be trusted: folding, or the gap to importance sampling.

        Everything else in the guide is exact.
        """
        body = self.body
        if not isinstance(body, HypernetBody):
            return Diagnosis({})
        return body.distribution().diagnose(num_samples=num_samples, thorough=thorough)

    def place_inducing(self, x: Tensor, y: Tensor) -> None:
        """Move the inducing points to random rows of these data, in place.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets.

        Raises:
            RuntimeError: If no layer is conditional.
        """
        inducing, model = self.inducing, self.original_model
        if inducing is None or not isinstance(model, BayesianModel):
            raise UsageError("place_inducing: the guide has no conditional layers, or is a copy without its model.")
        place_inducing(model, inducing, x, y, max(len(x), model.dataset_size or 0))
        self._rows_placed = len(x)

    @property
    def wants_rows(self) -> int:
        """Number of rows that :meth:`place_inducing` would make use of, because the example had too few; else 0."""
        wanted = 0 if self.inducing is None else self.inducing.num_inducing
        return wanted if wanted > self._rows_placed else 0

    # ------------------------------------------------------------------ the guide

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The distribution over all latents, flattened and unconstrained: a draw is ``[D]``."""
        body, inducing = self.body, self.inducing
        if body is not None and (inducing is None or self._plan is None):
            return body.distribution(self.loc, self.scale)
        drawn = None if body is None else body.distribution()
        layout = cast("ConditionalPlan", self._plan).layout
        return ConditionalWeights(
            drawn, cast("InducingLayers", inducing), layout, loc=self.loc, scale=self.scale, validate_args=False
        )


def _check_options(
    *,
    hnet: object,
    body: str,
    noise: str | None,
    estimator: object,
    init_scale: float,
    default_only: Mapping[str, Any],
) -> None:
    """Refuse options that contradict each other."""
    if body not in _BODIES:
        raise ArgumentError(f"body: is {body!r}; pass one of {', '.join(map(repr, _BODIES))}.")
    clash = [name for name, value in default_only.items() if value is not None]
    if hnet is not None and clash:
        raise ArgumentError(
            f"hnet, {clash[0]}: both were given; {clash[0]} describes the default hypernetwork. Build yours with it "
            "inside the function hnet."
        )
    if body != "hypernet":
        given = {"hnet": hnet, "noise": noise, "estimator": estimator, **default_only}
        clash = [name for name, value in given.items() if value is not None]
        if clash:
            raise ArgumentError(f"body, {clash[0]}: {clash[0]} belongs to a hypernetwork; leave out body={body!r}.")
    if noise not in (None, "shared", "independent"):
        raise ArgumentError(f"noise: is {noise!r}; pass 'shared' or 'independent'.")
    if not init_scale > 0:
        raise ArgumentError(f"init_scale: is {init_scale}; pass a positive number.")
