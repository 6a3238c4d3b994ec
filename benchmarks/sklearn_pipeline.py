"""Prices of houses from a frame, in dollars, by a pipeline of scikit-learn: coverage of the 90 % band, RMSE, NLL.

Generated districts (``_housing_data.py``), 8,000 rows for training and 2,000 for the test, one column of names; nothing
is scaled or tuned, ``BayesianRegressor()`` has its defaults. The noise of the data is multiplicative, that of the
default likelihood is not: ``coverage low`` and ``coverage high`` are those of the fifths of the rows with the lowest
and highest predicted price. ``HeteroscedasticNormal`` learns how the noise depends on the inputs. Scikit-learn's
regressors predict a mean only, but for quantile boosting, which is fitted once for each end of the band.

Run: ``python benchmarks/sklearn_pipeline.py [--quick] [--json FILE] [--seeds N]``.
"""

from __future__ import annotations

import time
from statistics import fmean
from typing import Any

import numpy as np
from _common import parser, report
from _housing_data import housing
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bayeshnet import likelihoods
from bayeshnet.sklearn import BayesianRegressor

TEST, LEVEL = 2_000, 0.9


def columns() -> Any:
    """The column of names as numbers, the others as they are."""
    return make_column_transformer((OneHotEncoder(sparse_output=False), ["ocean_proximity"]), remainder="passthrough")


def ours(parts: Any, seed: int, options: dict[str, Any]) -> dict[str, float]:
    """Fit and predict: the five lines."""
    train, test, y_train, y_test = parts
    pipeline = make_pipeline(columns(), BayesianRegressor(random_state=seed, **options))
    pipeline.fit(train, y_train)
    mean, low, high = pipeline.predict(test, return_interval=LEVEL)
    nll = -pipeline[-1].log_prob(pipeline[:-1].transform(test), y_test).mean()
    return {**band_scores(y_test, mean, low, high), "nll": nll}


def band_scores(y: Any, mean: Any, low: Any, high: Any) -> dict[str, float]:
    """RMSE, and coverage and width of a band."""
    inside = ((low <= y) & (y <= high)).to_numpy()
    order = np.argsort(mean)
    fifth = len(y) // 5
    return {
        "rmse": float(np.sqrt(np.mean((mean - y) ** 2))),
        "coverage": float(inside.mean()),
        "coverage low": float(inside[order[:fifth]].mean()),
        "coverage high": float(inside[order[-fifth:]].mean()),
        "width": float(np.mean(high - low)),
    }


def boosting(parts: Any, seed: int) -> dict[str, float]:
    """Gradient boosting: of the mean, and of both quantiles."""
    train, test, y_train, y_test = parts
    fits: list[dict[str, Any]] = [
        {"loss": "squared_error"},
        *({"loss": "quantile", "quantile": level} for level in (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)),
    ]
    found: list[Any] = []
    for options in fits:
        pipeline = make_pipeline(columns(), HistGradientBoostingRegressor(random_state=seed, **options))
        found.append(pipeline.fit(train, y_train).predict(test))
    return band_scores(y_test, *found)


def perceptron(parts: Any, seed: int, quick: bool) -> dict[str, float]:
    """One network, of inputs and targets that are standardised by hand."""
    train, test, y_train, y_test = parts
    network = MLPRegressor(
        hidden_layer_sizes=(50,), early_stopping=True, max_iter=20 if quick else 500, random_state=seed
    )
    pipeline = make_pipeline(columns(), StandardScaler(), network)
    model = TransformedTargetRegressor(pipeline, transformer=StandardScaler()).fit(train, y_train)
    return {"rmse": float(np.sqrt(np.mean((model.predict(test) - y_test) ** 2)))}


def main() -> None:
    """Fit and compare."""
    command = parser(__doc__ or "")
    command.add_argument("--seeds", type=int, default=None, help="data sets; 5, 1 with --quick")
    args = command.parse_args()
    rows, few = (4_000, {"steps": 300}) if args.quick else (10_000, {})
    methods: dict[str, Any] = {
        "BayesianRegressor": lambda parts, seed: ours(parts, seed, few),
        "  HeteroscedasticNormal": lambda parts, seed: ours(
            parts, seed, {**few, "likelihood": likelihoods.HeteroscedasticNormal(0.5)}
        ),
        "HistGradientBoosting": boosting,
        "MLPRegressor": lambda parts, seed: perceptron(parts, seed, args.quick),
    }
    found: list[dict[str, Any]] = []
    for seed in range(args.seeds or (1 if args.quick else 5)):
        frame, price = housing(rows, seed)
        parts = train_test_split(frame, price, test_size=TEST, random_state=seed)
        for name, method in methods.items():
            began = time.process_time()
            scores = method(parts, seed)
            found.append({"method": name, "seed": seed, **scores, "seconds": time.process_time() - began})
    summary: dict[str, float] = {}
    for name in methods:
        of_method = [row for row in found if row["method"] == name]
        for key in ("coverage", "coverage low", "coverage high", "rmse", "nll", "seconds"):
            if key in of_method[0]:
                summary[f"{name.strip()}/{key}"] = fmean(row[key] for row in of_method)
    of_ours = [row["coverage"] for row in found if row["method"] == "BayesianRegressor"]
    summary |= {"coverage": fmean(of_ours), "coverage_min": min(of_ours), "coverage_max": max(of_ours)}
    summary |= {"rmse": summary["BayesianRegressor/rmse"], "rmse_boosting": summary["HistGradientBoosting/rmse"]}
    report(found, summary, args)


if __name__ == "__main__":
    main()
