"""The page on scikit-learn."""

from __future__ import annotations

import re
from pathlib import Path

from bayeshnet.sklearn import BayesianClassifier, BayesianRegressor

PAGE = (Path(__file__).parents[2] / "docs" / "sklearn.md").read_text(encoding="utf-8")


def test_its_code_runs(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    coverage, spread, *_ = capsys.readouterr().out.split()
    assert 0.8 < float(coverage) <= 1.0
    assert 0.0 < float(spread) < 20_000.0, "of functions, less than the noise"
    assert -names["search"].best_score_ < 0.4, "by chance 1.1"
    assert (names["low"] < names["high"]).all()


def test_its_names_exist():
    table = PAGE.partition("| parameter |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    options = {name for row in rows for name in re.findall(r"`(\w+)=", row)}
    parameters = BayesianRegressor().get_params().keys() | BayesianClassifier().get_params().keys()
    assert options < parameters
    assert parameters - options == {"standardize", "dtype", "random_state", "progress"}, "said in the text"
    methods = PAGE.partition("| call |")[2].partition("\n\n")[0]
    for name in set(re.findall(r"`(\w+)\(", methods)):
        assert hasattr(BayesianRegressor, name) or hasattr(BayesianClassifier, name), name
