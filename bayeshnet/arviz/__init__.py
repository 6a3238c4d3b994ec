"""Posteriors, predictions and pointwise log-likelihoods as ArviZ's data, for its ``loo``, ``compare`` and plots.

``docs/arviz.md`` shows their use. Needs the extra ``arviz``: ``pip install 'bayeshnet[arviz]'``; with ArviZ 0.2x the
data are an ``InferenceData``, with 1.x a ``DataTree`` of xarray.
"""

from __future__ import annotations

from bayeshnet.arviz.conversion import to_arviz

__all__ = ["to_arviz"]
