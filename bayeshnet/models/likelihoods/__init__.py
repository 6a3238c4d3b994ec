"""Likelihoods: the distribution of an observation given the network's outputs, one family per file."""

from __future__ import annotations

from bayeshnet.models.likelihoods.base import Likelihood
from bayeshnet.models.likelihoods.categorical import Categorical
from bayeshnet.models.likelihoods.function import FromFunction, as_likelihood
from bayeshnet.models.likelihoods.normal import Normal

__all__ = ["Categorical", "FromFunction", "Likelihood", "Normal", "as_likelihood"]
