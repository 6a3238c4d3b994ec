"""A Pyro model made of a network, a prior over its weights and a likelihood."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of, require_count, require_trainable
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DatasetSizeWarning
from bayeshnet.mnets.batched import batched_forward
from bayeshnet.mnets.module_mainnet import frozen_hint, functional_copy
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models import priors
from bayeshnet.models._repr import model_repr
from bayeshnet.models.data_checks import check_parameters, check_rows, nan_error
from bayeshnet.models.learned_scales import LearnedScales
from bayeshnet.models.likelihoods import Likelihood
from bayeshnet.models.param_sites import emit_param_sites
from bayeshnet.models.prior_rules import prior_rule, usable_prior
from bayeshnet.models.weight_normal import WeightNormal

__all__ = ["BayesianModel"]

PriorLike: TypeAlias = "priors.Prior | TorchDistributionMixin | Callable[..., TorchDistributionMixin]"


class BayesianModel(Configured, nn.Module):
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
            ``dist.Laplace(0., 1.)`` (it takes the network's dtype and device); or a function
            ``(name, record, *, like) -> distribution``. ``priors.Normal(scale="fan_in")`` by default.
        likelihood: A :class:`~bayeshnet.models.likelihoods.Likelihood`.
        dataset_size: Number of rows of the whole data set. Needed when ``y`` comes in minibatches: the likelihood of a
            minibatch is scaled up to it.
        flat: Draw all weights as one site ``weights`` of shape ``[D]`` in the order of ``param_names`` rather than one
            site per parameter. Saves time per step for networks with many tensors.

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
        torch.Size([5, 1])
    """

    configured_as = "model"
    unrecorded = frozenset({"net", "prior", "likelihood"})

    # What is known of the model without running it, see bayeshnet.models.capabilities.
    max_plate_nesting: ClassVar[int] = 1
    vectorises: ClassVar[bool] = True
    requires_targets: ClassVar[bool] = True
    bounded_density: ClassVar[bool] = True

    def __init__(
        self,
        net: nn.Module,
        prior: PriorLike | None = None,
        likelihood: Likelihood | None = None,
        *,
        dataset_size: int | None = None,
        flat: bool = False,
    ) -> None:
        super().__init__()
        require_trainable("BayesianModel")
        if not isinstance(net, nn.Module):
            raise ArgumentTypeError(f"net: is {kind_of(net)}; pass an nn.Module.")
        if not isinstance(likelihood, Likelihood):
            raise ArgumentTypeError(
                f"likelihood: is {kind_of(likelihood)}; pass one of bayeshnet.likelihoods, such as "
                "likelihoods.Normal(scale=0.1) or likelihoods.Categorical()."
            )
        if dataset_size is not None:
            require_count("dataset_size", dataset_size, advice=", the rows of the whole data set")
        prior = priors.Normal(scale="fan_in") if prior is None else prior
        prior_rule(prior)  # says what a prior is, if this is none
        example = next((param for param in net.parameters() if param.requires_grad), None)
        dtype = torch.get_default_dtype() if example is None else example.dtype
        check_parameters(net)
        self.net = functional_copy(net)
        self.prior = prior
        self.likelihood = likelihood
        self.dataset_size = dataset_size
        self.flat = flat
        self.register_buffer("_like", torch.zeros((), dtype=dtype, device=getattr(example, "device", None)), False)
        self._like: Tensor
        self._names = list(self.net.param_names)
        self._shapes = [tuple(shape) for shape in self.net.param_shapes]
        self._prior_cache: tuple[tuple[torch.dtype, torch.device], dict[str, TorchDistributionMixin]] | None = None
        self._most_rows = 0
        self._squeeze_output = False
        self._indices: Tensor | None = None
        likelihood.check_dtype(dtype)
        for argument, named in prior.named_parameters().items() if isinstance(prior, priors.Prior) else ():
            unknown = [name for name in named if name not in self._names]
            if unknown:
                raise ArgumentError(
                    f"{argument}: has entries for {unknown}; the network's parameters are {self._names}."
                    f"{frozen_hint(unknown, self.net)}"
                )
        self.learned_scales = self._learned_scales()
        self.weight_priors()  # an unusable prior is an error here, not at the first step

    def __repr__(self) -> str:
        return model_repr(self)

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`."""
        parts = {"net": self.net, "prior": self.prior, "likelihood": self.likelihood}
        return {**parts, **super().configuration()}

    def facts(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.facts`."""
        return {"dtype": self._like.dtype}

    def not_compared(self) -> tuple[str, ...]:
        """The size of the data set, which is of training."""
        return ("dataset_size",)

    # ------------------------------------------------------------------ what is latent

    def weight_priors(self) -> dict[str, TorchDistributionMixin]:
        """The prior of every weight site, by site name; with the learned scales as they are now."""
        key = (self._like.dtype, self._like.device)
        if self._prior_cache is None or self._prior_cache[0] != key:
            self._prior_cache = (key, self._build_priors())
        start: dict[str, Any] = self._prior_cache[1]
        return start if self.learned_scales is None else {**self.learned_scales.priors(start)}

    def _learned_scales(self) -> LearnedScales | None:
        """Factors for the prior scales, where the prior asks for them."""
        shape_of = getattr(self.prior, "factor_shape", None)
        if shape_of is None:  # a plain function
            return None
        found = {name: shape_of(name, r) for name, r in zip(self._names, self.net.param_table, strict=True)}
        shapes = {name: shape for name, shape in found.items() if shape is not None}
        return LearnedScales(dict(zip(self._names, self._shapes, strict=True)), shapes, self._like) if shapes else None

    @property
    def scale_factors(self) -> dict[str, Tensor]:
        """What the prior scales of each parameter were multiplied by in learning; empty if none are learned.

        One number for each tensor, or ``[1, in, ...]`` where there is one for each input.
        """
        return {} if self.learned_scales is None else self.learned_scales.factors()

    def _build_priors(self) -> dict[str, TorchDistributionMixin]:
        rule = prior_rule(self.prior)
        if self.flat and isinstance(self.prior, torch.distributions.Distribution):
            record = ParamRecord((self.net.num_params,), "weight", 0)
            return {
                "weights": usable_prior(rule("weights", record, like=self._like), "weights", record.shape, self._like)
            }
        made: dict[str, TorchDistributionMixin] = {}
        for name, shape, record in zip(self._names, self._shapes, self.net.param_table, strict=True):
            fn = usable_prior(rule(name, record, like=self._like), name, shape, self._like)
            learned = self.learned_scales is not None and name in self.learned_scales.factor_shapes
            made[name] = LearnedScales.check(name, fn) if learned else fn
        return {"weights": _flat_normal(made)} if self.flat else made

    @property
    def latent_shapes(self) -> dict[str, Size]:
        """Event shape of every latent site, by name, in the order in which they are drawn."""
        shapes = {name: Size(fn.event_shape) for name, fn in self.weight_priors().items()}
        for name, fn in self.likelihood.priors().items():
            shapes[f"likelihood.{name}"] = Size(fn.event_shape)
        return shapes

    # ------------------------------------------------------------------ the Pyro program

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        """Draw weights and observations, or score observations.

        Args:
            x: Inputs ``[B, ...]``, or a tuple of the network's arguments, the first one ``[B, ...]``.
            y: Targets ``[B, ...]``, of the shape of the network's output (``[B]`` is accepted for ``[B, 1]``) or, for
                classification, labels ``[B]``. None draws them.

        Returns:
            The observations ``[..., B, ...]``. Without ``y`` and for outputs ``[B, 1]`` they are ``[..., B]`` if the
            last ``y`` given was ``[B]``, and ``[..., B, 1]`` if it was ``[B, 1]`` or none was given yet.

        Raises:
            ArgumentError: If shapes do not fit each other, or ``dataset_size`` is smaller than the batch.
            ArgumentTypeError: If a dtype does not fit.
        """
        self._check_input(x)
        draws, params = self.sample_latents()
        f, lead = self.evaluate(x, draws)
        if f.dim() == len(lead):
            raise ArgumentError("net: returns a single number; a likelihood needs one output per row, [B, ...].")
        rows = f.shape[len(lead)]
        if rows == 0 or (isinstance(x, Tensor) and x.dim() == 1):
            check_rows(x, rows)
        if y is not None:
            self._squeeze_output = self.likelihood.fit_target(y, f.shape[len(lead) :])
        if self._squeeze_output:
            f = f.squeeze(-1)
        conditional = self.likelihood.conditional(f, params, batch_dims=len(lead) + 1)
        with self._data_plate(rows, observed=y is not None):
            return pyro.sample("obs", conditional, obs=y)

    def sample_latents(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw the latent sites from the prior, without running the network; the first part of :meth:`forward`.

        Returns:
            The weights by site name, and the likelihood's latents by their names in it.
        """
        if self.learned_scales is not None:
            emit_param_sites("prior", self.learned_scales)
        draws = {name: pyro.sample(name, fn) for name, fn in self.weight_priors().items()}
        return draws, self.likelihood.sample_params()

    def evaluate(self, x: Any, weights: Mapping[str, Tensor]) -> tuple[Tensor, Size]:
        """Run the network for draws of its weight sites.

        Args:
            x: Inputs as for :meth:`forward`.
            weights: A value per weight site, each ``[*samples, *shape]`` with the same or broadcastable ``samples``.

        Returns:
            Outputs ``[*samples, B, ...]``, and ``samples``. A last sample dimension of size 1 is taken for the place
            of the data plate and dropped.
        """
        if self.flat:
            values: list[Tensor] = [weights["weights"]]
            event_dims = [1]
        else:
            values = [weights[name] for name in self._names]
            event_dims = [len(shape) for shape in self._shapes]
        batches = [value.shape[: value.dim() - dims] for value, dims in zip(values, event_dims, strict=True)]
        lead = batches[0] if len(set(batches)) == 1 else torch.broadcast_shapes(*batches)
        num = math.prod(lead)
        stacked: list[Tensor] = []
        for value, dims in zip(values, event_dims, strict=True):
            event = value.shape[value.dim() - dims :]
            stacked.append(value.expand(lead + event).reshape((num, *event)))
        f = batched_forward(self.net, stacked[0] if self.flat else stacked, x)
        if not isinstance(f, Tensor):
            raise ArgumentTypeError(
                f"net: returns {kind_of(f)}; a likelihood needs one tensor. Wrap the network in a module that "
                "returns the output to be observed."
            )
        if not f.is_floating_point():
            raise ArgumentTypeError(
                f"net: returns a tensor of {f.dtype}; a likelihood needs floating-point outputs, means or logits."
            )
        kept = lead[:-1] if len(lead) and lead[-1] == 1 else lead
        return self.likelihood.arrange(f.reshape(kept + f.shape[1:]), batch_dims=len(kept) + 1), kept

    def conditional(self, x: Any, draws: Mapping[str, Tensor]) -> tuple[Tensor, TorchDistributionMixin]:
        """Outputs, and the distribution of observations, for given draws of all latent sites.

        Args:
            x: Inputs ``[B, ...]``.
            draws: A value ``[S, *event]`` per site of :attr:`latent_shapes`.

        Returns:
            Outputs ``[S, B, ...]`` and the distribution with ``batch_shape`` ``[S, B]``. Outputs ``[S, B, 1]`` become
            ``[S, B]`` as in :meth:`forward`, if the last targets that this model was called with were ``[B]``.

        Raises:
            ArgumentError: If outputs are NaN; the message says whether inputs or draws are.
        """
        self._check_input(x)
        num = next(iter(draws.values())).shape[0]
        weights: dict[str, Tensor] = {}
        for name, fn in self.weight_priors().items():
            # An explicit place for the plate keeps one sample apart from none.
            value = weights[name] = draws[name].reshape((num, 1, *fn.event_shape))
            if value.dtype != self._like.dtype:
                raise ArgumentTypeError(
                    f"draws: those of {name!r} have dtype {value.dtype}, the network's weights {self._like.dtype}; "
                    f"convert them, value.to({self._like.dtype})."
                )
        f, _ = self.evaluate(x, weights)
        if f.dim() < 2:
            raise ArgumentError("net: returns a single number; a likelihood needs one output per row, [B, ...].")
        if isinstance(x, Tensor) and x.dim() == 1:
            check_rows(x, f.shape[1], some=False)
        # A sum is cheap beside what follows, and NaN if there is one among what it adds.
        if bool(torch.isnan(f.sum())) and bool(torch.isnan(f).any()):
            raise nan_error(x, draws, f)
        if self._squeeze_output:
            f = f.squeeze(-1)
        return f, self.likelihood.conditional_of(f, draws)

    def conditional_of(self, f: Tensor, draws: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """The distribution of observations given outputs ``f [S, B, ...]`` and draws of the likelihood's latents."""
        return self.likelihood.conditional_of(f, draws)

    @torch.no_grad()
    def check_observations(self, x: Any, y: Tensor) -> None:
        """Raise unless :meth:`forward` accepts these inputs and targets, without running the Pyro program.

        The network is evaluated once, for all weights at 0 and as few rows as show the shape of its output.

        Args:
            x: Inputs ``[B, ...]``, or a tuple of the network's arguments.
            y: Targets.

        Raises:
            ArgumentError: If shapes do not fit each other, or a target is not possible.
            ArgumentTypeError: If a dtype does not fit.
        """
        self._check_input(x)
        weights = {name: self._like.new_zeros(fn.event_shape) for name, fn in self.weight_priors().items()}
        few = x[:2] if isinstance(x, Tensor) and x.dim() > 1 else x
        f, lead = self.evaluate(few, weights)
        if few is not x and f.dim() > 0 and len(few) and len(f) == len(few):  # the others have the same shape
            f = f[:1].expand(len(x), *f.shape[1:])
        self.likelihood.fit_target(y, f.shape[len(lead) :])

    # ------------------------------------------------------------------ parts

    def _data_plate(self, rows: int, *, observed: bool) -> pyro.plate:
        size = self.dataset_size
        if not observed or size is None or size == rows:
            if observed and size is None:
                self._warn_of_minibatch(rows)
            return pyro.plate("data", rows, dim=-1)
        if size < rows:
            raise ArgumentError(f"dataset_size: is {size}, but a batch of {rows} rows was given; pass the full size.")
        if self._indices is None or len(self._indices) != rows:
            self._indices = torch.arange(rows)
        # Given indices keep Pyro from drawing a random subset: the rows were chosen by the caller.
        return pyro.plate("data", size, subsample=self._indices, dim=-1)

    def _warn_of_minibatch(self, rows: int) -> None:
        if rows < self._most_rows and torch.is_grad_enabled():  # an evaluation may be of other data
            warnings.warn(
                f"A batch of {rows} rows came after one of {self._most_rows} rows, and dataset_size is not set, so "
                "each batch is taken for the whole data set and the prior counts too much. Pass "
                "BayesianModel(..., dataset_size=<rows of the whole data set>).",
                DatasetSizeWarning,
                stacklevel=4,
            )
        self._most_rows = max(self._most_rows, rows)

    def _check_input(self, x: Any) -> None:
        for part in x if isinstance(x, tuple) else (x,):
            if isinstance(part, Tensor) and part.is_meta:
                raise ArgumentTypeError("x: is on the meta device, it has no values; pass a tensor that has.")
            if hasattr(part, "__array__") and not isinstance(part, Tensor):
                raise ArgumentTypeError(
                    f"x: is {kind_of(part)}; pass a tensor, torch.as_tensor(x, dtype={self._like.dtype})."
                )
        first = x[0] if isinstance(x, tuple) and x else x
        if isinstance(first, Tensor) and first.is_floating_point() and first.dtype != self._like.dtype:
            raise ArgumentTypeError(
                f"x: has dtype {first.dtype}, the network's weights have {self._like.dtype}; convert one of them, e.g. "
                f"x.to({self._like.dtype})."
            )


def _flat_normal(made: Mapping[str, TorchDistributionMixin]) -> TorchDistributionMixin:
    locs: list[Tensor] = []
    scales: list[Tensor] = []
    for name, fn in made.items():
        base: Any = fn
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        if not isinstance(base, torch.distributions.Normal):
            raise ArgumentError(
                f"flat: one site for all weights needs Normal priors, parameter {name!r} has {fn}; pass flat=False."
            )
        locs.append(base.loc.reshape(-1))
        scales.append(base.scale.reshape(-1))
    return WeightNormal(torch.cat(locs), torch.cat(scales))
