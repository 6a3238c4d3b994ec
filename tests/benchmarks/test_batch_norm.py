"""``benchmarks/batch_norm.py``: the whole program, and what it is there to show."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sklearn")

NAMES = ("batch_norm",)


@pytest.mark.slow
def test_statistics_of_each_draw_predict_where_running_ones_do_not(parts, monkeypatch, tmp_path, capsys):
    """Independent Gaussian weights: running statistics fit none of the networks drawn."""
    program = parts["batch_norm"]
    file = tmp_path / "found.json"
    options = ["--seeds", "1", "--steps", "400", "--guides", "mean_field", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["batch_norm.py", *options])
    program.main()
    assert "difference = " in capsys.readouterr().out
    found = json.loads(file.read_text())["summary"]
    # The standard error of an accuracy of .95 on 597 images is .009.
    assert found["difference"] > -0.02
    assert found["digits/batch_norm/accuracy"] > 0.92
    assert found["digits/batch_norm/accuracy"] > found["digits/batch_norm_running/accuracy"] + 0.05
