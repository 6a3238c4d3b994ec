"""What a Bayesian network makes of draws of its latents: outputs, distributions of observations, log-likelihoods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.mnets.broadcast import broadcast_forward, row_dims
from bayeshnet.models.data_checks import check_output, check_rows, nan_error
from bayeshnet.models.observations import row_data
from bayeshnet.models.output import with_output
from bayeshnet.models.plate_places import draws_have_batches
from bayeshnet.models.target_shapes import drops_dimension
from bayeshnet.models.weight_sites import placed_draws, split_flat, stacked_values

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["EvaluatedForDraws"]


class EvaluatedForDraws:
    """The part of :class:`~bayeshnet.BayesianModel` that runs the network for given draws of the latents.

    Example:
        >>> from torch import nn
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> isinstance(BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1)), EvaluatedForDraws)
        True
    """

    def evaluate(
        self, x: Any, weights: Mapping[str, Tensor], *, reference: bool = False, any_rows: bool = False
    ) -> tuple[Tensor, Size]:
        """Run the network for draws of its weight sites.

        Args:
            x: Inputs as for :meth:`forward`.
            weights: A value per weight site, each ``[*samples, *shape]`` with the same or broadcastable ``samples``;
                and statistics of their batch norm, as :meth:`with_statistics` returns them.
            reference: Use the reference rows of batch norm in training mode, too.
            any_rows: Do without reference rows where there are none: only the shape of the outputs matters.

        Returns:
            Outputs ``[*samples, B, ...]``, and ``samples``. A last sample dimension of size 1 is taken for the place
            of the data plate and dropped.
        """
        model = cast("BayesianModel", self)
        stacked, lead = stacked_values(weights, model.net, flat=model.flat)
        f = model.batch_norm.evaluated(
            with_output(model.network_for(x), model.output),
            stacked[0] if model.flat else stacked,
            x,
            statistics=model.batch_norm.given(weights),
            units=model.standardized_inputs,
            reference=reference,
            any_rows=any_rows,
        )
        f = check_output(f)
        kept = lead[:-1] if len(lead) and lead[-1] == 1 else lead
        return model.likelihood.arrange(f.reshape(kept + f.shape[1:]), batch_dims=len(kept) + 1), kept

    def evaluated_rows(
        self, x: Any, weights: Mapping[str, Tensor], y: Tensor | None, *, event_dim: int | None
    ) -> tuple[Tensor, Size]:
        """:meth:`evaluate` in a run of the program, where inputs may be latents of a larger one.

        Args:
            x: Inputs ``[B, ...]``; or ``[*batch, B, *row]``, whose batch dimensions broadcast against those of weights.
            weights: As for :meth:`evaluate`.
            y: Targets ``[B, *target]``, or None.
            event_dim: Number of dimensions of ``row``; None to find it out.

        Raises:
            ArgumentError: If inputs have batch dimensions, and the network has batch norm.
        """
        model = cast("BayesianModel", self)
        if event_dim is None and draws_have_batches() and _are_latent(x, y):
            event_dim = row_dims(model.net, x)
        if event_dim is None or not isinstance(x, Tensor) or x.dim() <= event_dim + 1:
            return model.evaluate(x, weights, reference=y is None)
        if model.batch_norm.layers:
            raise ArgumentError(
                f"x: has shape {list(x.shape)}, batch dimensions beside its rows, and the network has batch norm, "
                "which takes its statistics from the rows of one data set; use nn.LayerNorm or nn.GroupNorm."
            )
        stacked, lead = stacked_values(weights, model.net, flat=model.flat)
        stacked = split_flat(stacked[0], model.net) if model.flat else stacked
        f = broadcast_forward(model.net, stacked, lead, [model.standardized_inputs(x)], [event_dim])
        dims = max(len(lead), x.dim() - event_dim)
        return model.likelihood.arrange(check_output(f), batch_dims=dims), f.shape[: dims - 1]

    def conditional(
        self, x: Any, draws: Mapping[str, Tensor], **of_rows: Tensor | None
    ) -> tuple[Tensor, TorchDistributionMixin]:
        """Outputs, and the distribution of observations, for given draws of all latent sites.

        Args:
            x: Inputs ``[B, ...]``, or several, see :meth:`~bayeshnet.BayesianModel.as_inputs`.
            draws: A value ``[S, *event]`` per site of :attr:`latent_shapes`.
            of_rows: ``noise`` and ``exposure`` as for :meth:`forward`.

        Returns:
            Outputs ``[S, B, ...]`` as the likelihood takes them, and the distribution with ``batch_shape`` ``[S, B]``
            and the shape of one observation as ``event_shape``.

        Raises:
            ArgumentError: If outputs are NaN; the message says whether inputs or draws are.
        """
        model = cast("BayesianModel", self)
        x = model.as_inputs(x)
        model.check_inputs(x)
        weights = placed_draws(draws, model.weight_priors(), model._like)  # pyright: ignore[reportPrivateUsage] - this is a part of the same class
        f, _ = model.evaluate(x, {**weights, **model.batch_norm.given(draws)}, reference=True)
        if isinstance(x, Tensor) and x.dim() == 1:
            check_rows(x, f.shape[1], some=False)
        # A sum is cheap beside what follows, and NaN if there is one among what it adds.
        if bool(torch.isnan(f.sum())) and bool(torch.isnan(f).any()):
            raise nan_error(x, draws, f)
        f = model.without_dropped(f, 2)
        return f, model.conditional_of(f, draws, **of_rows)

    def conditional_of(
        self, f: Tensor, draws: Mapping[str, Tensor], **of_rows: Tensor | None
    ) -> TorchDistributionMixin:
        """The distribution of observations, given outputs ``f [S, B, ...]`` of :meth:`conditional` and all draws."""
        model = cast("BayesianModel", self)
        given = model.units.of_rows(row_data(model.likelihood, f.shape[1:], **of_rows))
        return model.units.observed(model.likelihood.conditional_of(f, draws, given), f.dtype)

    def log_likelihood(
        self,
        x: Any,
        y: Any,
        draws: Mapping[str, Tensor],
        *,
        weight: Tensor | None = None,
        size: int | None = None,
        **of_rows: Tensor | None,
    ) -> Tensor:
        """The log-likelihood ``[S]`` of all rows as these tell it: what :meth:`forward` adds to the joint density.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets ``[B, *target]``.
            draws: A value ``[S, *event]`` per site of :attr:`latent_shapes`.
            weight: As for :meth:`forward`.
            size: Number of all rows; ``dataset_size`` or B by default.
            of_rows: ``noise`` and ``exposure`` as for :meth:`forward`.
        """
        model = cast("BayesianModel", self)
        _, conditional = model.conditional(x, draws, **of_rows)
        y, weight = model.as_targets(y), model.as_targets(weight)
        rows = conditional.batch_shape[1]
        y = y.reshape(rows, *conditional.event_shape)  # of [B, 1] for single numbers the warning has been given
        fn, y = model.observed(conditional, y, weight)
        return fn.log_prob(y).double().sum(-1) * ((size or model.dataset_size or rows) / rows / model.kl_weight)

    def without_dropped(self, f: Tensor, batch_dims: int) -> Tensor:
        """Outputs without the dimension of size 1 that observations have not."""
        model = cast("BayesianModel", self)
        drops = drops_dimension(model.likelihood, f.shape[batch_dims:], model.target_shape)
        return f.squeeze(batch_dims) if drops else f


def _are_latent(x: Any, y: Any) -> bool:
    """Whether inputs cannot be ``[B, ...]``, by the targets ``[B, *target]``, but are ``[*batch, B, d]``."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dim() < 3 or not y.dim():
        return False
    places = x.shape[1:-1]  # one output for each, if rows are in the first dimension
    return len(y) == x.shape[-2] and (len(y) != len(x) or y.shape[1 : 1 + len(places)] != places)
