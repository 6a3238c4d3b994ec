"""Errors and warnings of the package, each family under one base.

Every error is also the built-in error that fits it, so ``except ValueError`` keeps working::

    BayeshnetError
    ├── ArgumentError          (ValueError)    a value that is not accepted
    ├── ArgumentTypeError      (TypeError)     a type that is not accepted
    ├── UsageError             (RuntimeError)  a call that is not possible now, in this state
    │   ├── DensityError                       a density that the sampler does not have
    │   └── NonFiniteLossError                 a loss or gradient that became NaN or infinite while fitting
    └── CheckpointError        (ValueError)    a file that does not belong to the objects given

    BayeshnetWarning           (UserWarning)
    ├── DatasetSizeWarning                     a minibatch is taken for the whole data set, or for a part of another
    ├── FoldingWarning                         a sampler folds: its density is not exact
    ├── SearchWarning                          no noise was found that leads to a value, or too few samples near it
    ├── EntropyGapWarning                      an entropy estimate is far from one that can be trusted more
    ├── SelfWeightWarning                      a semi-implicit bound sees nothing but a draw's own noise
    ├── SpreadWarning                          an estimated gradient of log q makes a posterior too narrow or too wide
    ├── DiscriminatorWarning                   a learned density ratio is saturated, not calibrated or not trained
    ├── ConvergenceWarning                     a fit ended before its stopping rule was met
    ├── UnitsWarning                           data are far from the units that a prior is made for
    ├── VectorisationWarning                   a model cannot be evaluated for many draws at once
    └── CheckpointWarning                      a file lacks what its objects need to predict the same
"""

from __future__ import annotations

from bayeshnet.deprecation import renamed_attributes

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BayeshnetError",
    "BayeshnetWarning",
    "CheckpointError",
    "CheckpointWarning",
    "ConvergenceWarning",
    "DatasetSizeWarning",
    "DensityError",
    "DiscriminatorWarning",
    "EntropyGapWarning",
    "FoldingWarning",
    "NonFiniteLossError",
    "SearchWarning",
    "SelfWeightWarning",
    "SpreadWarning",
    "TargetShapeWarning",
    "UnitsWarning",
    "UsageError",
    "VectorisationWarning",
]


class BayeshnetError(Exception):
    """Base of every error that the package raises on purpose."""


class ArgumentError(BayeshnetError, ValueError):
    """An argument has a value that is not accepted."""


class ArgumentTypeError(BayeshnetError, TypeError):
    """An argument has a type that is not accepted."""


class UsageError(BayeshnetError, RuntimeError):
    """A call is not possible in the state the object is in."""


class DensityError(UsageError):
    """The density asked for does not exist or cannot be computed for this sampler."""


class NonFiniteLossError(UsageError):
    """The loss, its gradient or a parameter became NaN or infinite while fitting."""


class CheckpointError(BayeshnetError, ValueError):
    """A checkpoint is damaged or belongs to other objects than those given."""


class BayeshnetWarning(UserWarning):
    """Base of every warning that the package issues."""


class DatasetSizeWarning(BayeshnetWarning):
    """The size of the data set was not given, or is not that of the data: the prior counts too much or too little."""


class RowDataWarning(BayeshnetWarning):
    """Something in a batch is taken for weights of its rows, and may be something else."""


class TargetShapeWarning(BayeshnetWarning):
    """Targets have a last dimension of size 1 that predictions will not have."""


class FoldingWarning(BayeshnetWarning):
    """The sampler maps several noise vectors to one weight vector: its entropy is over-estimated."""


class SearchWarning(BayeshnetWarning):
    """The search for the noise behind given weights found none for some of them, or too little to trust the density."""


class EntropyGapWarning(BayeshnetWarning):
    """The entropy estimate differs from one that can be trusted more by more than its error."""


class SelfWeightWarning(BayeshnetWarning):
    """The noise that made a draw carries nearly all weight in a semi-implicit bound, which then sees nothing else."""


class SpreadWarning(BayeshnetWarning):
    """The estimated gradient of log q counts the spread of the draws for too little or too much."""


class DiscriminatorWarning(BayeshnetWarning):
    """The discriminator behind an adversarial estimate separates too well, is not calibrated, or has not learned."""


class ConvergenceWarning(BayeshnetWarning):
    """A fit used up its steps before its stopping rule was met."""


class UnitsWarning(BayeshnetWarning):
    """Inputs are far from unit scale, or targets far from the prior predictive distribution: a fit will be poor."""


class VectorisationWarning(BayeshnetWarning):
    """A model or guide is wrong for many draws in one call, so that they are made in turn."""


class CheckpointWarning(BayeshnetWarning):
    """What is saved leaves out learned parameters of a model, without which its guide predicts something else."""


__getattr__ = renamed_attributes(__name__, {"OwnWeightWarning": "bayeshnet.errors.SelfWeightWarning"})
