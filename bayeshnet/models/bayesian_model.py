"""A Pyro model made of a network, a prior over its weights and a likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of, require_count, require_positive, require_trainable
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentTypeError
from bayeshnet.mnets.functional import functional_copy
from bayeshnet.models import priors
from bayeshnet.models._repr import model_repr
from bayeshnet.models.batch_norm import BatchNormMode, BatchNormStatistics
from bayeshnet.models.columns import columns_from
from bayeshnet.models.data_checks import check_input, check_parameters, check_rows
from bayeshnet.models.evaluated import EvaluatedForDraws
from bayeshnet.models.features import Features
from bayeshnet.models.forms import leaves
from bayeshnet.models.given_data import GivenData, network_inputs
from bayeshnet.models.learned_points import LearnedPoints
from bayeshnet.models.likelihoods import Likelihood, as_likelihood
from bayeshnet.models.observations import check_missing, data_plate, observed, row_data, row_weight
from bayeshnet.models.output import Picked, check_output_argument
from bayeshnet.models.param_sites import emit_param_sites
from bayeshnet.models.parts import Bayesian, Others, roles_of
from bayeshnet.models.plate_places import in_plates
from bayeshnet.models.prepared import PreparedByData
from bayeshnet.models.prior_rules import as_prior, prior_rule
from bayeshnet.models.target_shapes import checked_shape, fitted_targets
from bayeshnet.models.trunk import PrecomputesTrunk
from bayeshnet.models.units import Standardize, Units, standardization_from
from bayeshnet.models.updated import PosteriorPrior, updated
from bayeshnet.models.weight_sites import build_priors, learned_scales, prior_for, prior_latents

__all__ = ["BayesianModel"]

PriorLike: TypeAlias = (
    "priors.Prior | priors.JointPrior | TorchDistributionMixin | Callable[..., TorchDistributionMixin]"
)


class BayesianModel(GivenData, EvaluatedForDraws, PreparedByData, PrecomputesTrunk, Configured, nn.Module):
    """A Bayesian neural network as a Pyro model: ``w ~ prior``, ``y ~ likelihood(net(x; w))``.

    Calling it runs the Pyro program, so that every Pyro algorithm accepts it: ``SVI``, ``NUTS``, ``Predictive`` (also
    in parallel), ``Trace_ELBO(vectorize_particles=True)``. Each parameter of the network is a sample site under its own
    dotted name; the likelihood's own latents are ``likelihood.NAME``; observations are the site ``obs`` in the plate
    ``data``. The network is copied and its parameter values are left behind: the network given stays as it is.

    Parameters that are frozen (``requires_grad=False``) when the model is built are no sites: they stay what they are,
    are moved and saved with the model, and stand in its ``repr``. So does the padding row of an embedding; the site of
    its weight has that row, but the likelihood does not depend on it, so that its posterior is its prior. See
    :class:`~bayeshnet.mnets.ModuleMainNet`.

    Args:
        net: Any ``nn.Module``, or a main network of this package.
        prior: A :class:`~bayeshnet.models.priors.Prior`; a distribution of one number, for every weight, such as
            ``dist.Laplace(0., 1.)`` (it takes the network's dtype and device); a function ``(name, shape) ->
            distribution`` or ``(name, record, *, like) -> distribution``; or with ``flat=True``
            :class:`~bayeshnet.ImplicitWeights`. ``priors.Normal(scale="fan_in")`` by default.
        likelihood: A :class:`~bayeshnet.models.likelihoods.Likelihood`, or a function from outputs to a distribution of
            Pyro, see :class:`~bayeshnet.models.likelihoods.FromFunction`.
        dataset_size: Number of rows of the whole data set. Needed when ``y`` comes in minibatches: the likelihood of a
            minibatch is scaled up to it.
        flat: Draw all weights as one site ``weights`` of shape ``[D]`` in the order of ``param_names`` rather than one
            site per parameter. Saves time per step for networks with many tensors.
        standardize: Training data ``(x, y)``, batches of them, or a :class:`~bayeshnet.models.Standardization`: the
            model brings inputs, and targets of likelihoods with a location and a scale, to mean 0 and variance 1
            inside; prior and noise are in those units, everything else in the units of the data. See ``docs/units.md``.
        batch_norm: Statistics of batch norm in evaluation mode: ``"draws"``, those of each draw of the weights on
            reference rows (see :meth:`set_reference_rows`), ``"batch"`` or ``"running"``. A layer that is in evaluation
            mode when the model is built keeps its running statistics.
        reference_rows: Number of those rows.
        output: What is observed of that which the network returns: a key or attribute (``"logits"``), a place in a
            tuple (0), or a function from what it returns, for one set of weights, to a tensor ``[B, ...]``.
        columns: How columns of a frame become numbers, :class:`~bayeshnet.models.Columns`, or the training frame; that
            of ``standardize=(frame, y)`` by default.
        inputs: Number of the network's arguments at the front of a batch ``(u, v, y)``; those that its ``forward``
            requires by default. See :meth:`as_inputs` for the forms of data, and ``docs/networks.md``.
        bayesian: Which parameters are weights: all by default; ``"last_layer"``; ``"norm"``; patterns of names
            (``"*.weight"``, ``"!0.*"`` to leave out) or :class:`~bayeshnet.models.parts.Parts`; types of modules; or a
            function ``(name, record) -> bool``. See ``docs/bayesian_parts.md``.
        others: What the other parameters are, from their values in ``net``: ``"learned"`` (points, trained with the
            guide; by default), ``"frozen"``, a prior (points, learned under it), or a mapping from patterns to these.

    Attributes:
        inputs_taken: What is known of the network's arguments;
            :class:`~bayeshnet.models.given_data.NetworkInputs`.
        units: The statistics by which data are standardised; :class:`~bayeshnet.models.units.Units`.
        batch_norm: What normalises batch norm, with the reference rows;
            :class:`~bayeshnet.models.batch_norm.BatchNormStatistics`.

    Raises:
        ArgumentTypeError: If an argument is of another type, the likelihood's prior has more bits than the network, or
            the network has complex parameters or is one whose weights cannot be exchanged (scripted, quantised, ...).
        ArgumentError: If the network has no parameters or all are frozen, or PyTorch's spectral norm of one that is
            not, or the prior does not cover them or names one that is not there or frozen.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> from bayeshnet.models import likelihoods, priors
        >>> model = BayesianModel(net, prior=priors.Normal(scale="fan_in"), likelihood=likelihoods.Normal(scale=0.1))
        >>> list(model.latent_shapes)
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> model(torch.randn(5, 2)).shape  # a draw from the prior predictive
        torch.Size([5])
    """

    configured_as = "model"
    unrecorded = frozenset({"net", "prior", "likelihood", "standardize", "columns", "inputs"})

    # What is known of the model without running it, see bayeshnet.models.capabilities.
    max_plate_nesting: ClassVar[int] = 1
    vectorises: ClassVar[bool] = True
    requires_targets: ClassVar[bool] = True
    bounded_density: ClassVar[bool] = True

    def __init__(
        self,
        net: nn.Module,
        prior: PriorLike | None = None,
        likelihood: Likelihood | Callable[..., TorchDistributionMixin] | None = None,
        *,
        dataset_size: int | None = None,
        flat: bool = False,
        target_shape: Sequence[int] | None = None,
        missing: Literal["refuse", "ignore"] = "refuse",
        kl_weight: float = 1.0,
        standardize: Standardize = None,
        batch_norm: BatchNormMode = "draws",
        reference_rows: int = 256,
        output: Picked = None,
        columns: Any = None,
        inputs: int | None = None,
        bayesian: Bayesian = None,
        others: Others | None = None,
    ) -> None:
        super().__init__()
        require_trainable("BayesianModel")
        if not isinstance(net, nn.Module):
            raise ArgumentTypeError(f"net: is {kind_of(net)}; pass an nn.Module.")
        likelihood = as_likelihood(likelihood)
        if dataset_size is not None:
            require_count("dataset_size", dataset_size, advice=", the rows of the whole data set")
        check_missing(missing)
        require_positive("kl_weight", kl_weight)
        prior = priors.Normal(scale="fan_in") if prior is None else as_prior(prior)
        prior_rule(prior)  # says what a prior is, if this is none
        example = next((param for param in net.parameters() if param.requires_grad), None)
        dtype = torch.get_default_dtype() if example is None else example.dtype
        check_parameters(net)
        roles = roles_of(net, bayesian, others)
        self.bayesian, self.others = roles.bayesian, others
        self.net = functional_copy(net, learned=roles.learned, frozen=roles.frozen)
        self.inputs_taken = network_inputs(net, inputs)
        self.output = check_output_argument(output)
        self.columns = columns_from(columns, standardize)
        if self.columns is not None:
            self.columns.check_network(net)
        self.batch_norm = BatchNormStatistics(self.net, batch_norm, reference_rows)
        self.prior = prior = prior_for(prior, net, self.net, flat=flat)
        self.likelihood = likelihood
        self.dataset_size = dataset_size
        self.flat = flat
        self.target_shape = checked_shape(target_shape)
        self.missing = missing
        self.kl_weight = float(kl_weight)
        self.register_buffer("_like", torch.zeros((), dtype=dtype, device=getattr(example, "device", None)), False)
        self._like: Tensor
        self.points = LearnedPoints(self.net, roles)
        self._prior_cache: tuple[tuple[torch.dtype, torch.device], dict[str, TorchDistributionMixin]] | None = None
        found = standardization_from(standardize, targets=likelihood.standardizes_targets, arguments=self.as_arguments)
        found = found if self.columns is None else self.columns.only_numbers(found)
        self.units = Units(found, device=self._like.device, names=self.inputs_taken.names)
        likelihood.check_dtype(dtype)
        self.learned_scales = learned_scales(prior, self.net, self._like)
        if isinstance(prior, PosteriorPrior):
            prior.to(self._like)
        self.prior_latents()
        self.weight_priors()  # an unusable prior is an error here, not at the first step

    def __repr__(self) -> str:
        return model_repr(self)

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`."""
        units = self.units.standardization
        parts = {"net": self.net, "prior": self.prior, "likelihood": self.likelihood, "standardize": units}
        inputs = self.inputs_taken.num if self.inputs_taken.chosen else None
        return {**super().configuration(), **parts, "columns": self.columns, "inputs": inputs}

    def facts(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.facts`."""
        return {"dtype": self._like.dtype}

    def not_compared(self) -> tuple[str, ...]:
        """The size of the data set, which is of training."""
        return ("dataset_size",)

    # ------------------------------------------------------------------ what is latent

    def prior_latents(self) -> dict[str, TorchDistributionMixin]:
        """Priors of the prior's own latents, such as scales, by their names in it; none for most priors."""
        return prior_latents(self.prior, self.net, self._like)

    def weight_priors(self, latents: Mapping[str, Tensor] | None = None) -> dict[str, TorchDistributionMixin]:
        """The prior of every weight site, by site name; with the learned scales as they are now.

        Args:
            latents: Values ``[*samples, *event]`` of :attr:`prior_latents`, which it is then given; 1 by default.
        """
        if isinstance(self.prior, PosteriorPrior | priors.JointPrior):
            return {"weights": self.prior.weights()}
        if latents:
            made: dict[str, Any] = build_priors(
                self.prior, self.net, self._like, learned=None, flat=self.flat, latents=latents
            )
            return made if self.learned_scales is None else {**self.learned_scales.priors(made)}
        key = (self._like.dtype, self._like.device)
        if self._prior_cache is None or self._prior_cache[0] != key:
            learned = self.learned_scales
            self._prior_cache = (key, build_priors(self.prior, self.net, self._like, learned=learned, flat=self.flat))
        start: dict[str, Any] = self._prior_cache[1]
        return start if self.learned_scales is None else {**self.learned_scales.priors(start)}

    @property
    def scale_factors(self) -> dict[str, Tensor]:
        """What the prior scales of each parameter were multiplied by in learning; empty if none are learned.

        One number for each tensor, or ``[1, in, ...]`` where there is one for each input.
        """
        return {} if self.learned_scales is None else self.learned_scales.factors()

    @property
    def latent_shapes(self) -> dict[str, Size]:
        """Event shape of every latent site, by name, in the order in which they are drawn."""
        shapes = {f"prior.{name}": Size(fn.event_shape) for name, fn in self.prior_latents().items()}
        shapes.update({name: Size(fn.event_shape) for name, fn in self.weight_priors().items()})
        for name, fn in self.likelihood.priors().items():
            shapes[f"likelihood.{name}"] = Size(fn.event_shape)
        return shapes

    # ------------------------------------------------------------------ the Pyro program

    def forward(
        self,
        x: Any = None,
        y: Any = None,
        weight: Any = None,
        noise: Any = None,
        exposure: Any = None,
        *others: Any,
        event_dim: int | None = None,
        plate: pyro.plate | None = None,
        **named: Any,
    ) -> Tensor:
        """Draw weights and observations, or score observations.

        Args:
            x: Inputs ``[B, ...]``, or several, see :meth:`as_inputs`; what follows is one place later for each further
                input that is given in a place of its own, see :meth:`as_arguments`. In a larger program they may be
                latents ``[*batch, B, *row]``, see ``event_dim``.
            y: Targets ``[B, *target]``, see ``target_shape``; for classification labels ``[B]``. None draws them.
            weight: Factors ``[B]`` of each row's log-likelihood, 0 or more; they do not matter where ``y`` is drawn.
            noise: Known noise of each row ``[B]`` or ``[B, *target]``, for likelihoods with ``per_row=True``.
            exposure: Exposure of each row ``[B]`` or ``[B, *target]``, for likelihoods with ``exposure=True``.
            others: The last of these, after several inputs in places of their own.
            named: Inputs by the names that they have in the network.
            event_dim: Number of dimensions of one row of ``x``, for inputs that are latents or depend on some, whose
                particles and enumerated values are dimensions to the left of the rows. By default found out for a
                chain of linear layers with ``y``; all dimensions but the first for others.
            plate: The plate of the rows, if a larger program has one with latents of its own for each row; without it
                they are in the plate ``data``, and a sum over discrete latents of another plate would be wrong.

        Returns:
            The observations ``[..., B, *target]``.

        Raises:
            ArgumentError: If shapes do not fit each other, ``dataset_size`` is smaller than the batch, or the
                likelihood needs something of each row that is not given, or has no use for it.
            ArgumentTypeError: If a dtype does not fit.
        """
        x, y, weight, noise, exposure = self.in_order(x, y, weight, noise, exposure, *others, **named)
        self.check_inputs(x)
        draws, params = self.sample_latents()
        f, lead = self.evaluated_rows(x, draws, y, event_dim=event_dim)
        dims = len(lead) + 1
        rows = f.shape[dims - 1]
        if rows == 0 or (isinstance(x, Tensor) and x.dim() == 1):
            check_rows(x, rows)
        if y is not None:
            y = fitted_targets(self.likelihood, y, f.shape[dims - 1 :], self.target_shape)
        f = self.without_dropped(f, dims)
        given = self.units.of_rows(row_data(self.likelihood, f.shape[dims - 1 :], noise=noise, exposure=exposure))
        conditional = self.units.observed(self.likelihood.conditional(f, {**params, **given}, batch_dims=dims), f.dtype)
        if y is not None:
            conditional, y = self.observed(conditional, y, weight)
        with (
            data_plate(rows, None if y is None else self.dataset_size, plate),
            pyro.poutine.scale(scale=1.0 / self.kl_weight),
        ):
            return pyro.sample("obs", conditional, obs=y)

    def observed(
        self, conditional: TorchDistributionMixin, y: Tensor, weight: Tensor | None = None
    ) -> tuple[TorchDistributionMixin, Tensor]:
        """The distribution that scores targets in training, with all weights, and the targets without gaps.

        Its log-density differs from that of ``conditional`` by weights of rows and classes, and targets that are left
        out; not by ``kl_weight`` and ``dataset_size``.

        Args:
            conditional: The distribution of observations, as :meth:`conditional` returns it.
            y: Targets ``[B, *target]``.
            weight: Factors of each row ``[B]``.
        """
        return observed(
            conditional,
            y,
            entry_weight=self.likelihood.entry_weight(y),
            row_weight=None if weight is None else row_weight(weight, len(y)),
            ignore_missing=self.missing == "ignore",
        )

    def sample_latents(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw the latent sites from the prior, without running the network; the first part of :meth:`forward`.

        Returns:
            The weights by site name, and the likelihood's latents by their names in it.
        """
        self.points.emit()
        if self.learned_scales is not None:
            emit_param_sites("prior", self.learned_scales)
        if isinstance(self.prior, nn.Module):
            emit_param_sites("prior", self.prior)
        own = self.prior_latents().items()
        latents = {name: in_plates(pyro.sample(f"prior.{name}", fn), fn.event_dim) for name, fn in own}
        priors_now = self.weight_priors(latents)
        draws = {name: in_plates(pyro.sample(name, fn), fn.event_dim) for name, fn in priors_now.items()}
        if isinstance(self.prior, PosteriorPrior):
            return draws, self.likelihood.sample_params(partial(self.prior.sample_likelihood, draws["weights"]))
        return draws, self.likelihood.sample_params()

    def check_inputs(self, x: Any) -> None:
        """Raise unless inputs ``[B, ...]``, or the network's arguments in a tuple or dict, are of its dtype."""
        first = next((name for name, _ in leaves(x)), "0")
        check_input(x, self._like, any_float=self.units.takes_any_float(first) and not isinstance(x, Features))

    def standardized_inputs(self, x: Any) -> Any:
        """Inputs ``[B, ...]``, or a tuple or dict of the network's arguments, in the units and dtype of the network."""
        if isinstance(x, Features):
            return x.plain()
        return self.units.inputs(x, dtype=self._like.dtype)

    def updated(self, guide: Any, *, dataset_size: int | None = None, num_samples: int | None = None) -> BayesianModel:
        """A model for the next data, whose prior is the posterior so far; see :mod:`bayeshnet.models.updated`.

        Args:
            guide: A fitted guide; or draws ``[S, *shape]`` by site, from NUTS for instance.
            dataset_size: Number of rows of the next data, as for a new model.
            num_samples: Number of draws where moments are taken of draws; 20 for each latent, 2,000 to 20,000.
        """
        return updated(self, guide, dataset_size=dataset_size, num_samples=num_samples)
