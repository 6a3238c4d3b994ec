"""Pictures of predictions and fits, drawn with matplotlib on axes that are given or made.

Every function takes ``ax`` and returns it, shows nothing and leaves matplotlib's settings alone. Needs the extra
``plot``: ``pip install 'bayeshnet[plot]'``.
"""

from __future__ import annotations

try:
    import matplotlib as _  # noqa: F401, ICN001
except ModuleNotFoundError as error:
    raise ImportError("bayeshnet.plotting needs matplotlib. Try: pip install 'bayeshnet[plot]'") from error

from bayeshnet.plotting._inputs import PredictionLike
from bayeshnet.plotting.calibration import calibration_curve, reliability_diagram
from bayeshnet.plotting.priors import prior_functions
from bayeshnet.plotting.regression import regression_band
from bayeshnet.plotting.training import HistoryLike, elbo_trace

__all__ = [
    "HistoryLike",
    "PredictionLike",
    "calibration_curve",
    "elbo_trace",
    "prior_functions",
    "regression_band",
    "reliability_diagram",
]
