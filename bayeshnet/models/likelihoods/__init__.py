"""Likelihoods: the distribution of an observation given the network's outputs, one family per file."""

from __future__ import annotations

from bayeshnet.models.likelihoods.base import Likelihood
from bayeshnet.models.likelihoods.bernoulli import Bernoulli
from bayeshnet.models.likelihoods.beta import Beta
from bayeshnet.models.likelihoods.categorical import Categorical
from bayeshnet.models.likelihoods.censored_normal import CensoredNormal
from bayeshnet.models.likelihoods.function import FromFunction, as_likelihood
from bayeshnet.models.likelihoods.laplace import Laplace
from bayeshnet.models.likelihoods.multivariate_normal import MultivariateNormal
from bayeshnet.models.likelihoods.negative_binomial import NegativeBinomial
from bayeshnet.models.likelihoods.normal import HeteroscedasticNormal, Normal
from bayeshnet.models.likelihoods.normal_mixture import NormalMixture
from bayeshnet.models.likelihoods.ordinal import Ordinal
from bayeshnet.models.likelihoods.parameters import ParametricLikelihood
from bayeshnet.models.likelihoods.poisson import Poisson
from bayeshnet.models.likelihoods.student_t import StudentT
from bayeshnet.models.likelihoods.truncated_normal import TruncatedNormal

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "CensoredNormal",
    "FromFunction",
    "HeteroscedasticNormal",
    "Laplace",
    "Likelihood",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "NormalMixture",
    "Ordinal",
    "ParametricLikelihood",
    "Poisson",
    "StudentT",
    "TruncatedNormal",
    "as_likelihood",
]
