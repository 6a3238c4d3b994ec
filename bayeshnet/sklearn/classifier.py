"""Classification by a Bayesian neural network."""

# scikit-learn has no type stubs.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from bayeshnet.errors import ArgumentError
from bayeshnet.models import likelihoods
from bayeshnet.sklearn._estimator import BayesianEstimator, as_array, validated
from bayeshnet.sklearn._parts import Guide, Net
from bayeshnet.sklearn._rows import Array, RowWeights

__all__ = ["BayesianClassifier"]


class BayesianClassifier(ClassifierMixin, BayesianEstimator):
    """Classification by a Bayesian neural network: class probabilities averaged over many networks.

    Labels may be of any type that scikit-learn takes. The network gives a logit for each class, of two classes too.
    What is said of units, random numbers and memory of :class:`~bayeshnet.sklearn.BayesianRegressor` holds here.

    Args:
        hidden_layers: Units of each hidden layer; ``()`` for a linear model.
        activation: Between layers.
        net: A network of your own in place of these: an ``nn.Module`` that maps ``[B, n_features]`` to ``[B,
            n_classes]``, or a function ``(n_features, n_classes) -> nn.Module``.
        prior: As for :class:`~bayeshnet.BayesianModel`.
        guide: As for :class:`~bayeshnet.sklearn.BayesianRegressor`.
        class_weight: Factors of the log-likelihood by class, ``{label: factor}``; ``"balanced"`` gives all classes the
            same sum.
        steps: Steps of the fit; by default 2,000, or those of 20 passes through the data if these are more.
        epochs: Passes through the data, instead of ``steps``.
        batch_size: Rows of a step; by default all up to 1,000, and 500 of more.
        learning_rate: Of Adam.
        num_particles: Posterior samples per step.
        num_samples: Networks that predict.
        standardize: Whether the model standardises inputs.
        dtype: Precision of the fit of a network of ``hidden_layers``.
        random_state: A seed, a ``numpy.random.RandomState``, or None for numpy's global one.
        progress: Show a progress bar.

    Attributes:
        classes_: The labels, in the order of the columns of ``predict_proba``.
        model_: The :class:`~bayeshnet.BayesianModel`; in its ``repr`` stands what was chosen.
        guide_: The fitted guide.
        history_: The :class:`~bayeshnet.History` of the fit.
        draws_: The networks that predict: ``[num_samples, ...]`` by site.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns of a frame.

    Example:
        >>> x = np.linspace(-1.0, 1.0, 40)[:, None]
        >>> y = np.where(x[:, 0] > 0.0, "right", "left")
        >>> classifier = BayesianClassifier((10,), steps=20, random_state=0).fit(x, y)
        >>> classifier.classes_, classifier.predict_proba(x[:3]).shape
        (array(['left', 'right'], dtype='<U5'), (3, 2))
    """

    classes_: Array

    def __init__(
        self,
        hidden_layers: tuple[int, ...] = (50,),
        *,
        activation: Literal["relu", "tanh"] = "relu",
        net: Net | None = None,
        prior: Any = None,
        guide: Guide = "auto",
        class_weight: Any = None,
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
        self.guide = guide
        self.class_weight = class_weight
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BayesianClassifier:
        """Fit the posterior.

        Args:
            X: Inputs ``[n, K]``: an array, or a frame of numbers. Categorical columns are for a ``ColumnTransformer``.
            y: Labels ``[n]`` of two classes or more.
            sample_weight: Factors of the log-likelihood of each row; 2 counts as two rows.

        Raises:
            ValueError: If data are not finite, sizes differ, there is one class only, or a parameter is out of range;
                most are :class:`~bayeshnet.errors.ArgumentError`.
            TypeError: If a parameter is of another type.
        """
        x, y = validated(self, X, y)
        check_classification_targets(y)
        weight = self._weights(sample_weight, x)
        self.classes_, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise ArgumentError(f"y: has one class, {self.classes_.tolist()[0]!r}; pass labels of two classes or more.")
        weight = weight * self._factors(codes, weight)[codes]
        self._fit(x, codes, weight, likelihoods.Categorical(), len(self.classes_))
        return self

    def _factors(self, codes: Array, weight: RowWeights) -> Array:
        """The weight of each class."""
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            totals = np.bincount(codes, weight, minlength=len(self.classes_))
            return totals.sum() / (np.count_nonzero(totals) * np.where(totals > 0, totals, 1.0))
        return compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[codes])

    def _observed(self, y: Any) -> Array:
        y = column_or_1d(y)
        codes = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        unknown = self.classes_[codes] != y
        if unknown.any():
            raise ArgumentError(f"y: has labels that fit has not seen, {np.unique(y[unknown])[:5].tolist()}.")
        return codes

    # ------------------------------------------------------------------ predictions

    def predict_proba(self, X: Any) -> Array:
        """Probability of each class ``[n, n_classes]``, in the order of ``classes_``: the mean over the networks.

        Args:
            X: Inputs ``[n, K]``.
        """
        return as_array(self._summary(X, None).probs)

    def predict_log_proba(self, X: Any) -> Array:
        """Their logarithms.

        Args:
            X: Inputs ``[n, K]``.
        """
        return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> Array:
        """The most probable label of each row ``[n]``.

        Args:
            X: Inputs ``[n, K]``.
        """
        chosen = self.predict_proba(X).argmax(axis=1)
        return self.classes_[chosen]

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """Draw labels ``[n, S]`` from the posterior predictive distribution.

        Each sample is of one network of its own, at all rows: together they tell which rows go with each other.

        Args:
            X: Inputs ``[n, K]``.
            n_samples: Number S of samples.
            random_state: Where they come from; with the same seed they are the same.
        """
        codes = self._sampled(X, n_samples, random_state).samples.cpu().numpy()
        return self.classes_[codes.T]
