"""Batch norm and dropout, refused in one place."""

from __future__ import annotations

import pytest
from torch import nn

from bayeshnet.errors import DensityError
from bayeshnet.hnets import HMLP
from bayeshnet.hnets.row_maps import require_row_map


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            HMLP([[3]], use_batch_norm=True),
            "hnet: has batch norm .*, so it is; build it with use_batch_norm=False",
        ),
        (HMLP([[3]], dropout_rate=0.2), r"hnet: has dropout \(module 'dropout'\), so it is; build .* or leave it\."),
        (nn.Sequential(nn.BatchNorm2d(3)), r"hnet: has batch norm \(module '0'\)"),
        (nn.Sequential(nn.AlphaDropout()), r"hnet: has dropout \(module '0'\)"),
    ],
    ids=["batch norm", "dropout", "torch's batch norm", "alpha dropout"],
)
def test_what_is_no_map_of_rows_is_refused(made: nn.Module, message: str) -> None:
    with pytest.raises(DensityError, match=message):
        require_row_map(made, "so it is", otherwise=", or leave it")


def test_what_is_one_passes() -> None:
    require_row_map(HMLP([[3]]), "so it is")
