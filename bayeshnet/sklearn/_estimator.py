"""What a regressor and a classifier share: the fit, draws of the posterior, predictions in bounded memory."""

# scikit-learn has no type stubs.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,  # pyright: ignore[reportPrivateUsage] - what estimators outside of scikit-learn use
    check_is_fitted,
    validate_data,
)
from torch import Tensor

from bayeshnet.checks import require_count, require_flag
from bayeshnet.evaluation import Prediction, PredictionSummary, posterior_draws, predict, predict_summary
from bayeshnet.models import BayesianModel
from bayeshnet.sklearn._parts import built_guide, built_network, own_random_numbers
from bayeshnet.sklearn._rows import Array, RowWeights, merged, standardization_of
from bayeshnet.training import fit

__all__ = ["BayesianEstimator", "as_array", "validated"]

_SEEDS = 2**31 - 1
_MOST_ROWS = 1_000  # of a full batch, by default
_ROWS = 500  # of a minibatch, by default
_STEPS = 2_000
_PASSES = 20
# Numbers that the networks of sample_y write at once, for each unit of a layer.
_AT_ONCE = 2**18
_FLOATS = [np.float64, np.float32]


class BayesianEstimator(BaseEstimator, ABC):
    """Base of both estimators; see :class:`~bayeshnet.sklearn.BayesianRegressor`."""

    n_features_in_: int
    model_: BayesianModel
    guide_: Any
    draws_: dict[str, Tensor]

    # The parameters, which the subclasses list.
    hidden_layers: Any
    activation: Any
    net: Any
    prior: Any
    guide: Any
    steps: Any
    epochs: Any
    batch_size: Any
    learning_rate: Any
    num_particles: Any
    num_samples: Any
    standardize: Any
    dtype: Any
    random_state: Any
    progress: Any

    @abstractmethod
    def _observed(self, y: Any) -> Array:
        """Targets ``[n]`` or ``[n, T]`` as numbers, or as codes of labels, of a fitted estimator."""

    def _weights(self, sample_weight: Any, x: Array) -> RowWeights:
        return np.asarray(_check_sample_weight(sample_weight, x), dtype=np.float64)

    def _fit(self, x: Array, y: Array, weight: RowWeights, likelihood: Any, outputs: int) -> None:
        """Fit model and guide to rows with weights, and draw from the guide."""
        require_count("num_samples", self.num_samples)
        require_flag("standardize", self.standardize)
        seed = check_random_state(self.random_state).randint(_SEEDS)
        x, y, weight = merged(x, y, weight)
        targets = y if likelihood.standardizes_targets else None
        with own_random_numbers(seed):
            sizes = (x.shape[1], outputs)
            model = BayesianModel(
                built_network(self.net, self.hidden_layers, self.activation, self.dtype, sizes),
                copy.deepcopy(self.prior),
                likelihood,
                dataset_size=len(x),
                standardize=standardization_of(x, targets, weight) if self.standardize else None,
            )
            inputs = _inputs(model, x)
            data = (inputs, _targets(model, y))
            if (weight != 1.0).any():
                data = (*data, torch.tensor(np.ascontiguousarray(weight), dtype=_dtype(model)))
            guide = built_guide(self.guide, model, data)
            steps, batch_size = self.steps, self.batch_size
            if batch_size is None and len(x) > _MOST_ROWS:
                batch_size = _ROWS
            if steps is None and self.epochs is None:
                steps = max(_STEPS, _PASSES * -(-len(x) // (batch_size or len(x))))
            self.history_ = fit(
                model,
                guide,
                data,
                steps,
                epochs=self.epochs,
                batch_size=batch_size,
                lr=self.learning_rate,
                num_particles=self.num_particles,
                progress=self.progress,
            )
            if self.net is None:
                # In float64 a row's prediction does not depend on the rows beside it, but for its last digits.
                model.double()
                guide.double()
            draws = posterior_draws(model, guide, inputs[:1], self.num_samples)
        self.model_, self.guide_ = model.eval(), guide
        self.draws_ = {name: value.detach() for name, value in draws.items()}

    # ------------------------------------------------------------------ predictions

    def _checked(self, X: Any) -> Tensor:
        """Inputs of a prediction."""
        check_is_fitted(self)
        return _inputs(self.model_, validated(self, X, reset=False))

    def _summary(self, X: Any, levels: tuple[float, ...] | None = (), y: Tensor | None = None) -> PredictionSummary:
        generator = torch.Generator().manual_seed(0)  # of distributions without formulas, which are sampled
        x = self._checked(X)
        targets: Any = False if y is None else y
        return predict_summary(self.model_, self.draws_, x, levels=levels, targets=targets, generator=generator)

    def log_prob(self, X: Any, y: Any) -> Array:
        """Log predictive density of each observation, in the units of the data; of labels their log probability.

        Args:
            X: Inputs ``[n, K]``.
            y: Targets as for ``fit``.

        Returns:
            ``[n]``, in nats. Their mean is a score for model selection:
            ``GridSearchCV(..., scoring=lambda e, X, y: e.log_prob(X, y).mean())``.
        """
        check_is_fitted(self)
        return as_array(self._summary(X, y=_targets(self.model_, self._observed(y))).log_prob)

    def _sampled(self, X: Any, n_samples: int, random_state: Any) -> Prediction:
        """Predictions by networks of their own, drawn from the guide."""
        require_count("n_samples", n_samples)
        x = self._checked(X)
        seed = check_random_state(random_state).randint(_SEEDS)
        with own_random_numbers(seed):
            draws = posterior_draws(self.model_, self.guide_, x[:1], int(n_samples))
        generator = torch.Generator().manual_seed(seed)
        rows = max(_AT_ONCE // int(n_samples), 1)
        return predict(self.model_, draws, x, batch_size=rows, generator=generator)


def validated(estimator: BayesianEstimator, *data: Any, **options: Any) -> Any:
    """Inputs, and targets if there are any, as arrays: scikit-learn's checks, and its notes of columns and their names.

    Example:
        >>> from bayeshnet.sklearn import BayesianRegressor
        >>> regressor = BayesianRegressor()
        >>> validated(regressor, [[1, 2]], [3])
        (array([[1., 2.]]), array([3]))
        >>> regressor.n_features_in_
        2
    """
    return validate_data(estimator, *data, dtype=_FLOATS, **options)


def as_array(values: Tensor) -> Array:
    """Numbers of a prediction in float64.

    Example:
        >>> as_array(torch.ones(2))
        array([1., 1.])
    """
    return values.detach().cpu().double().numpy()


def _inputs(model: BayesianModel, x: Array) -> Tensor:
    """Inputs in their own precision where the model standardises them, and in the network's otherwise."""
    found = torch.tensor(np.ascontiguousarray(x))  # a copy: an array may be read-only
    return found if model.units.takes_any_float("0") else found.to(_dtype(model))


def _targets(model: BayesianModel, y: Array) -> Tensor:
    """Targets, likewise; labels and counts as whole numbers where the likelihood takes no others."""
    if model.likelihood.integer_targets:
        return torch.tensor(y.astype(np.int64))
    units = model.units.standardization
    rescaled = units is not None and units.targets is not None
    return torch.tensor(np.ascontiguousarray(y), dtype=torch.float64 if rescaled else _dtype(model))


def _dtype(model: BayesianModel) -> torch.dtype:
    return model.facts()["dtype"]
