"""Formulas of hyperfan: shapes and numbers only, no modules and nothing random.

What draws with these numbers is in :mod:`bayeshnet.hnets`; users call :mod:`bayeshnet.init`.
"""

from __future__ import annotations

from bayeshnet.fans.chunks import chunk_embedding_variances, mean_target_variances
from bayeshnet.fans.heads import SCALES, HeadInit, Moments, bias_free_head, head_inits
from bayeshnet.fans.overrides import Overrides, counted_variance, read_number, read_overrides, read_variance
from bayeshnet.fans.targets import PARAM_NAMES, Target, fan_in_and_out
from bayeshnet.fans.variances import METHODS, chunk_variances, gain, input_variance, require_method, row_variance

__all__ = [
    "METHODS",
    "PARAM_NAMES",
    "SCALES",
    "HeadInit",
    "Moments",
    "Overrides",
    "Target",
    "bias_free_head",
    "chunk_embedding_variances",
    "chunk_variances",
    "counted_variance",
    "fan_in_and_out",
    "gain",
    "head_inits",
    "input_variance",
    "mean_target_variances",
    "read_number",
    "read_overrides",
    "read_variance",
    "require_method",
    "row_variance",
]
