"""Regression by a Bayesian neural network."""

# scikit-learn has no type stubs.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array, column_or_1d

from bayeshnet.checks import require_flag
from bayeshnet.errors import ArgumentError
from bayeshnet.models import likelihoods
from bayeshnet.models.likelihoods import as_likelihood
from bayeshnet.sites.quantiles import checked_level, checked_levels
from bayeshnet.sklearn._estimator import BayesianEstimator, as_array, validated
from bayeshnet.sklearn._parts import Guide, Net
from bayeshnet.sklearn._rows import Array

__all__ = ["BayesianRegressor"]


class BayesianRegressor(RegressorMixin, BayesianEstimator):
    """Regression by a Bayesian neural network: a predictive distribution for each row.

    Data come in their own units: the model standardises inputs and targets (``standardize=True``), and what is
    predicted is in the units of the targets. Rows that are equal are merged, their weights added. A fit draws
    ``num_samples`` networks from the posterior, and all predictions are exact functions of those: they are the same at
    each call, for any division of the rows, and need memory for what they return only.

    A fit uses random numbers of ``random_state`` and leaves PyTorch's global generator as it was. It trains in float32;
    a network of ``hidden_layers`` predicts in float64, one given as ``net`` in its own precision.

    Args:
        hidden_layers: Units of each hidden layer; ``()`` for a linear model.
        activation: Between layers.
        net: A network of your own in place of these: an ``nn.Module`` that maps ``[B, n_features]`` to ``[B,
            n_outputs]``, or a function ``(n_features, n_outputs) -> nn.Module``.
        prior: As for :class:`~bayeshnet.BayesianModel`.
        likelihood: Of :mod:`bayeshnet.likelihoods`; by default Gaussian noise of a latent scale. The network gets as
            many outputs for each target as it takes. Scales are in standard deviations of the targets.
        guide: ``"auto"`` for an :class:`~bayeshnet.AutoHypernet`, a :class:`~bayeshnet.families.Family` of it or its
            short form (``"mean_field"``), or a function ``(model, example) -> guide``, whose parameters have to be
            in a module.
        steps: Steps of the fit; by default 2,000, or those of 20 passes through the data if these are more.
        epochs: Passes through the data, instead of ``steps``.
        batch_size: Rows of a step; by default all up to 1,000, and 500 of more.
        learning_rate: Of Adam.
        num_particles: Posterior samples per step.
        num_samples: Networks that predict.
        standardize: Whether the model standardises inputs, and targets of likelihoods with a location and a scale.
        dtype: Precision of the fit of a network of ``hidden_layers``.
        random_state: A seed, a ``numpy.random.RandomState``, or None for numpy's global one.
        progress: Show a progress bar.

    Attributes:
        model_: The :class:`~bayeshnet.BayesianModel`; in its ``repr`` stands what was chosen.
        guide_: The fitted guide.
        history_: The :class:`~bayeshnet.History` of the fit.
        draws_: The networks that predict: ``[num_samples, ...]`` by site.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns of a frame.

    Example:
        >>> x = np.linspace(0.0, 10.0, 40)[:, None]
        >>> y = 1000.0 + 50.0 * np.sin(x[:, 0])
        >>> regressor = BayesianRegressor((10,), steps=20, random_state=0).fit(x, y)
        >>> mean, std = regressor.predict(x[:3], return_std=True)
        >>> mean.shape, std.shape, regressor.sample_y(x[:3], 5).shape
        ((3,), (3,), (3, 5))
    """

    def __init__(
        self,
        hidden_layers: tuple[int, ...] = (50,),
        *,
        activation: Literal["relu", "tanh"] = "relu",
        net: Net | None = None,
        prior: Any = None,
        likelihood: Any = None,
        guide: Guide = "auto",
        steps: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 0.01,
        num_particles: int = 8,
        num_samples: int = 200,
        standardize: bool = True,
        dtype: Literal["float32", "float64"] = "float32",
        random_state: Any = None,
        progress: bool = False,
    ) -> None:
        self.hidden_layers = hidden_layers
        self.activation = activation
        self.net = net
        self.prior = prior
        self.likelihood = likelihood
        self.guide = guide
        self.steps = steps
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.num_particles = num_particles
        self.num_samples = num_samples
        self.standardize = standardize
        self.dtype = dtype
        self.random_state = random_state
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn wants to know: that there may be several targets."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BayesianRegressor:
        """Fit the posterior.

        Args:
            X: Inputs ``[n, K]``: an array, or a frame of numbers. Categorical columns are for a ``ColumnTransformer``.
            y: Targets ``[n]`` or ``[n, T]``.
            sample_weight: Factors of the log-likelihood of each row; 2 counts as two rows.

        Raises:
            ValueError: If data are not finite or sizes differ, or a parameter is out of range; most are
                :class:`~bayeshnet.errors.ArgumentError`.
            TypeError: If a parameter is of another type.
        """
        x, y = validated(self, X, y, multi_output=True, y_numeric=True)
        weight = self._weights(sample_weight, x)
        y = np.asarray(column_or_1d(y, warn=True) if y.ndim == 1 or y.shape[1] == 1 else y, dtype=np.float64)
        likelihood = self._likelihood()
        targets = 1 if y.ndim == 1 else y.shape[1]
        self._shape = y.shape[1:]
        self._fit(x, y, weight, likelihood, targets * likelihood.outputs_per_target)
        return self

    def _likelihood(self) -> Any:
        if self.likelihood is None:
            two = torch.tensor(2.0, dtype=torch.float32)  # whatever the default precision is
            return likelihoods.Normal(scale=dist.Gamma(two, two))
        likelihood = as_likelihood(copy.deepcopy(self.likelihood))
        if likelihood.row_data:
            raise ArgumentError(
                f"likelihood: {type(likelihood).__name__} takes {' and '.join(likelihood.row_data)} of each row, which "
                "fit(X, y) has no place for; use BayesianModel with it."
            )
        return likelihood

    def _observed(self, y: Any) -> Array:
        y = check_array(y, dtype="float64", ensure_2d=False, input_name="y")
        return y[:, 0] if y.ndim == 2 and not self._shape else y

    # ------------------------------------------------------------------ predictions

    def predict(self, X: Any, return_std: bool = False, return_interval: float | None = None) -> Any:
        """Predict the mean, and on request how far an observation may be from it.

        A ``Pipeline`` hands both options on.

        Args:
            X: Inputs ``[n, K]``.
            return_std: Also return the standard deviation of a new observation, noise included.
            return_interval: The probability of an interval, such as 0.9, whose ends are returned, too.

        Returns:
            The mean ``[n]`` or ``[n, T]``; with options a tuple ``(mean, std)``, ``(mean, low, high)``, or ``(mean,
            std, low, high)``.

        Raises:
            UsageError: If the mean or the standard deviation does not exist, as that of a Student-t may not.
        """
        require_flag("return_std", return_std)
        ends = () if return_interval is None else _ends(return_interval)
        summary = self._summary(X, ends)
        found = [summary.mean, *([summary.std] if return_std else []), *(summary.quantiles if ends else ())]
        arrays = [as_array(values) for values in found]
        return tuple(arrays) if len(arrays) > 1 else arrays[0]

    def predict_interval(self, X: Any, level: float = 0.9) -> tuple[Array, Array]:
        """Central interval that holds a new observation with a probability, noise included.

        Args:
            X: Inputs ``[n, K]``.
            level: The probability.

        Returns:
            Lower and upper ends ``[n]`` or ``[n, T]``.
        """
        low, high = self._summary(X, _ends(level)).quantiles
        return as_array(low), as_array(high)

    def predict_quantiles(self, X: Any, quantiles: Any = (0.05, 0.5, 0.95)) -> Array:
        """Quantiles of a new observation, noise included.

        Args:
            X: Inputs ``[n, K]``.
            quantiles: Q numbers between 0 and 1.

        Returns:
            ``[n, Q]`` or ``[n, T, Q]``.
        """
        levels = tuple(float(level) for level in checked_levels("quantiles", quantiles))
        if not levels:
            raise ArgumentError("quantiles: is empty; pass numbers between 0 and 1.")
        return np.moveaxis(as_array(self._summary(X, levels).quantiles), 0, -1)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0, *, noise: bool = True) -> Array:
        """Draw observations, or functions, from the posterior predictive distribution.

        Each sample is of one network of its own, at all rows.

        Args:
            X: Inputs ``[n, K]``.
            n_samples: Number S of samples.
            random_state: Where they come from; with the same seed they are the same.
            noise: Whether to draw observations; otherwise the mean of an observation under each network, a function.

        Returns:
            ``[n, S]`` or ``[n, T, S]``.
        """
        require_flag("noise", noise)
        pred = self._sampled(X, n_samples, random_state)
        return np.moveaxis(as_array(pred.samples if noise else pred.functions), 0, -1)


def _ends(level: Any) -> tuple[float, float]:
    level = checked_level("level", level)
    return 0.5 - level / 2, 0.5 + level / 2
