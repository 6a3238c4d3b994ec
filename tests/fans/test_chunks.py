"""Variances of chunk embeddings in closed form."""

from __future__ import annotations

import math

import pytest

from bayeshnet.fans import chunk_embedding_variances, mean_target_variances


def test_chunk_means_are_weighted_by_shares():
    # Chunks of 4: [0 0 0 1], [1 1 1 1], [2 -]; the surplus of the last one counts for nothing.
    assert mean_target_variances([3, 5, 1], [1.0, 5.0, 7.0], 4) == [2.0, 5.0, 7.0]
    assert mean_target_variances([3, 5, 1], [1.0, None, None], 4) == [1.0, None, None]
    assert mean_target_variances([2, 2, 2], [1.0, 2.0, 6.0], 100) == [3.0]


def test_chunk_embedding_variances():
    variances, clipped, bound = chunk_embedding_variances([0.5, 0.1, None], [(3, 0.2), (1, 0.6)], 2, 0.01)
    v = (3 * 0.2 + 0.6) / 4
    assert variances == pytest.approx([(6 * 0.5 - 4 * v) / 2, 0.01, 0.01])
    assert (clipped, bound) == (1, pytest.approx((6 * 0.1 - 2 * 0.01) / 4))
    # At the bound nothing is clipped.
    assert chunk_embedding_variances([0.5, 0.1], [(4, bound)], 2, 0.01 - 1e-12)[1] == 0
    assert chunk_embedding_variances([0.5], [], 2, 0.01) == ([0.5], 0, math.inf)
