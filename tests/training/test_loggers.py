"""Callbacks that write the course of a fit."""

from __future__ import annotations

import csv

import pytest
import torch

from bayeshnet import AutoHypernet, Validation, fit
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.training import CsvLogger, History, TensorBoardLogger
from tests.problems import bnn


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv(tmp_path):
    model, data = bnn()
    guide = AutoHypernet(model, example=data, conditional=None)
    log = CsvLogger(tmp_path / "fit.csv", every=2)
    options = {"validation": Validation(data, every=3), "progress": False, "callbacks": [log]}
    history = fit(model, guide, data, 6, **options)
    rows = read(tmp_path / "fit.csv")
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 5]
    assert [float(row["loss"]) for row in rows] == [history.losses[i] for i in (0, 2, 4, 5)]
    assert [float(row["kl"]) for row in rows] == [history.kl[i] for i in (0, 2, 4, 5)]
    assert [row["validation"] for row in rows] == ["", str(history.validation[0]), "", str(history.validation[1])]
    fit(model, guide, data, 1, callbacks=[log], progress=False)  # begins it anew
    assert len(read(tmp_path / "fit.csv")) == 1


def test_csv_of_a_fit_that_is_resumed(tmp_path):
    """The lines of steps that are made once more are replaced."""

    def interrupt(step, history):
        if step == 6:
            raise KeyboardInterrupt

    for others in ([interrupt], []):
        torch.manual_seed(0)
        model, data = bnn()
        guide = AutoHypernet(model, example=data, conditional=None)
        callbacks = [CsvLogger(tmp_path / "fit.csv"), *others]
        history = fit(model, guide, data, 9, callbacks=callbacks, checkpoint=tmp_path / "fit", every=4, progress=False)
    rows = read(tmp_path / "fit.csv")
    assert history.resumed_from == 4
    assert [int(row["step"]) for row in rows] == list(range(9))
    assert [float(row["loss"]) for row in rows] == history.losses


def test_csv_of_a_process_that_died_while_it_wrote(tmp_path):
    path = tmp_path / "fit.csv"
    path.write_text("step,loss,log_likelihood,kl,lr,validation\n0,2.5,,,0.1,\nno,step,of,a,fit,\n1,2.")
    CsvLogger(path)(1, History(losses=[2.5, 2.0], lrs=[0.1, 0.1]))
    assert [(row["step"], row["loss"]) for row in read(path)] == [("0", "2.5"), ("1", "2.0")]


class Writer:
    def __init__(self):
        self.points = []

    def add_scalar(self, tag, value, step):
        self.points.append((tag, value, step))


def test_tensorboard():
    model, data = bnn()
    guide = AutoHypernet(model, example=data, conditional=None)
    writer = Writer()
    log = TensorBoardLogger(writer, every=4, prefix="run/")
    history = fit(model, guide, data, 6, validation=Validation(data, every=2), callbacks=[log], progress=False)
    assert [(tag, step) for tag, _, step in writer.points] == [
        *[(f"run/{name}", 0) for name in ("loss", "lr", "log_likelihood", "kl")],
        ("run/validation", 1),
        ("run/validation", 3),
        *[(f"run/{name}", 4) for name in ("loss", "lr", "log_likelihood", "kl")],
        ("run/validation", 5),
    ]
    assert writer.points[0][1] == history.losses[0]


def test_what_is_refused(tmp_path):
    with pytest.raises(ArgumentTypeError, match="path: is an int"):
        CsvLogger(3)
    with pytest.raises(ArgumentError, match="every: is 0"):
        CsvLogger(tmp_path / "fit.csv", every=0)
    with pytest.raises(ArgumentTypeError, match="writer: is a str, which has no add_scalar"):
        TensorBoardLogger("runs")
