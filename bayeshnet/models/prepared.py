"""What a Bayesian network takes from its data before training: reference rows of its batch norm, and their units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from bayeshnet.errors import UsageError
from bayeshnet.models.forms import num_rows
from bayeshnet.models.target_shapes import fitted_targets
from bayeshnet.models.units_check import check_units

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["PreparedByData", "with_statistics"]


class PreparedByData:
    """The part of :class:`~bayeshnet.BayesianModel` that looks at data before a fit.

    Example:
        >>> from torch import nn
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> isinstance(BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1)), PreparedByData)
        True
    """

    def prepare(self, x: Any, y: Any = None, *, example: bool = False, **of_rows: Any) -> None:
        """Look at data before training: keep reference rows for batch norm, warn of units that no prior is made for.

        Guides call it with their example, and :func:`~bayeshnet.fit` with rows of the data. Rows from
        :meth:`set_reference_rows` stay.

        Args:
            x: Inputs ``[B, ...]``, or several, see :meth:`~bayeshnet.BayesianModel.as_inputs`.
            y: Targets.
            example: Keep rows only if there are none yet.
            of_rows: What else is given of each row: ``weight``, ``noise``, ``exposure``.
        """
        model = cast("BayesianModel", self)
        norm, x, y = model.batch_norm, model.as_inputs(x), model.as_targets(y)
        if norm.wants_rows and not norm.chosen and not (example and norm.rows_kept) and num_rows(x):
            norm.set_rows(x)
        check_units(model, x, y, of_rows)

    @torch.no_grad()
    def check_observations(self, x: Any, y: Any) -> None:
        """Raise unless the model accepts these inputs and targets, without running the Pyro program.

        The network is evaluated once, for all weights at 0 and as few rows as show the shape of its output.

        Args:
            x: Inputs ``[B, ...]``, or a tuple of the network's arguments.
            y: Targets.

        Raises:
            ArgumentError: If shapes do not fit each other, or a target is not possible.
            ArgumentTypeError: If a dtype does not fit.
        """
        model = cast("BayesianModel", self)
        x, y = model.as_inputs(x), model.as_targets(y)
        model.check_inputs(x)
        like = model._like  # pyright: ignore[reportPrivateUsage] - this is a part of the same class
        weights = {name: like.new_zeros(fn.event_shape) for name, fn in model.weight_priors().items()}
        few = x
        if isinstance(x, Tensor) and x.dim() > 1:  # one row twice: batch norm takes no statistics of one
            few = x[:2] if len(x) != 1 else x.expand(2, *x.shape[1:])
        f, lead = model.evaluate(few, weights, any_rows=True)
        if few is not x and len(few) and len(f) == len(few):  # the others have the same shape
            f = f[:1].expand(len(x), *f.shape[1:])
        fitted_targets(model.likelihood, y, f.shape[len(lead) :], model.target_shape)

    @property
    def rows_to_show(self) -> int:
        """Number of rows that :meth:`prepare` wants of data in batches."""
        norm = cast("BayesianModel", self).batch_norm
        return norm.num_rows if norm.wants_rows else 1

    def set_reference_rows(self, x: Any) -> None:
        """Choose the rows on which the statistics of batch norm are taken for each draw of the weights.

        Evenly spaced rows of ``x`` are copied to buffers, ``reference_rows`` of them. A later :func:`~bayeshnet.fit`
        leaves them as they are.

        Args:
            x: Training inputs ``[B, ...]``, or several, see :meth:`~bayeshnet.BayesianModel.as_inputs`.

        Raises:
            ArgumentError: If there are fewer than two rows, or some are NaN or infinite.
            ArgumentTypeError: If they are no tensors, or not of the network's dtype.
            UsageError: If the network has no batch norm that they are for.

        Example:
            >>> from torch import nn
            >>> from bayeshnet import BayesianModel, likelihoods
            >>> net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
            >>> model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1))
            >>> model.set_reference_rows(torch.randn(1000, 2))
            >>> model.batch_norm
            draws, 1 layer, 256 reference rows
        """
        model = cast("BayesianModel", self)
        norm = model.batch_norm
        if not norm.wants_rows:
            raise UsageError(
                "set_reference_rows: the network has no batch norm whose statistics are taken for each draw "
                f"({norm!r}); there is nothing to set."
            )
        x = model.as_inputs(x)
        model.check_inputs(x)
        norm.set_rows(x, chosen=True)

    def with_statistics(self, x: Any, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draws together with the statistics of their batch norm, so that these are computed once for many rows.

        Args:
            x: Some inputs, for arguments of the network that do not have rows.
            draws: A value ``[S, *event]`` per site.

        Returns:
            The draws and, where the network has batch norm and there are reference rows, statistics ``[S, 2, C]`` by
            names of their own; :meth:`~bayeshnet.BayesianModel.conditional` takes all of it.

        Example:
            >>> from torch import nn
            >>> from bayeshnet import BayesianModel, likelihoods
            >>> net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
            >>> model, x = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1)), torch.randn(100, 2)
            >>> model.set_reference_rows(x)
            >>> draws = {name: torch.randn(5, *shape) for name, shape in model.latent_shapes.items()}
            >>> once = model.with_statistics(x, draws)
            >>> once["batch_norm.0"].shape
            torch.Size([5, 2, 8])
            >>> one, all_rows = model.conditional(x[:1], once)[0], model.conditional(x, once)[0]
            >>> torch.allclose(one, all_rows[:, :1], atol=1e-4)
            True
        """
        model = cast("BayesianModel", self)
        norm = model.batch_norm
        if not norm.wants_rows or not norm.rows_kept or norm.given(draws):
            return dict(draws)
        weights = [draws["weights"] if model.flat else draws[name] for name in model.weight_priors()]
        found = norm.of_draws(model.net, weights[0] if model.flat else weights, x, units=model.standardized_inputs)
        return {**draws, **found}


def with_statistics(model: Any, x: Any, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """:meth:`PreparedByData.with_statistics` of a model; the draws as they are if it has none.

    Example:
        >>> with_statistics(print, None, {})
        {}
    """
    own = getattr(model, "with_statistics", None)
    return draws if own is None else own(x, draws)
