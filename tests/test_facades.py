"""Every public name of version 0.1 still imports; one that was renamed says so, and what to write instead."""

from __future__ import annotations

import importlib
import re
import warnings

import pytest

import bayeshnet
from bayeshnet import families

# What ``__all__`` of each module named in version 0.1.
NAMES = {
    "bayeshnet": """
        HMLP MLP AutoHypernet AutoHypernetDelta AutoHypernetNormal BayesianModel FlatElbo HPerturbWrapper
        History ImplicitWeights ModuleMainNet Prediction batched_forward diagnose entropy fit flipout hnets
        importance_sample init likelihoods load local_reparameterisation log_evidence mnets predict priors
        save start_from
    """,
    "bayeshnet.distributions": """
        ConditionalWeights FlatLayout ImplicitWeights InducingLayers LayerConditional MixtureWeights
        MultiplicativeLowRank UnitGaussians UnitLayout
    """,
    "bayeshnet.entropy": """
        Adversarial ChangeOfVariables Diagnosis Draw ImportanceEstimate ImportanceSampled Linearised
        LogDensity NoisySampler Preimages SemiImplicit SpectralStein find_preimages has_full_support
        importance_log_density spectral_score
    """,
    "bayeshnet.errors": """
        ArgumentError ArgumentTypeError BayeshnetError BayeshnetWarning CheckpointError CheckpointWarning
        ConvergenceWarning DatasetSizeWarning DensityError DiscriminatorWarning EntropyGapWarning
        FoldingWarning NonFiniteLossError OwnWeightWarning SearchWarning SpreadWarning UsageError
        VectorisationWarning
    """,
    "bayeshnet.hnets": """
        HMLP ChunkedHDeconv ChunkedHMLP ChunkedHyperNet HContainer HDeconv HPerturbWrapper HyperNet
        HyperNetInterface LinearHeadHyperNet StructuredHMLP get_conditional_parameters init_chunk_embeddings
        init_conditional_embeddings resnet_chunking wrn_chunking
    """,
    "bayeshnet.infer": """
        AutoHypernet AutoHypernetDelta AutoHypernetNormal Estimate FlatElbo History Mixture Prediction Report
        SmoothedWeights WeightedDraws diagnose fit flat_then_cosine importance_sample load log_evidence
        pareto_smooth posterior_draws predict save start_from
    """,
    "bayeshnet.init": """
        chunked_hyperfan_init gauss_hyperfan_init hyperfan_init
    """,
    "bayeshnet.layers": """
        BatchNormLayer ContextModLayer SelfAttnLayerV2 SpectralNorm
    """,
    "bayeshnet.metrics": """
        CRPS RMSE BrierScore ExpectedCalibrationError IntervalCoverage IntervalWidth NegativeLogLikelihood
        brier_score central_interval classification_scores crps expected_calibration_error interval_coverage
        interval_width log_predictive_density negative_log_likelihood regression_scores rmse
    """,
    "bayeshnet.mnets": """
        MLP WRN MainNetInterface ModuleMainNet ParamRecord ResNet batched_forward functional_copy
    """,
    "bayeshnet.models": """
        BayesianModel ParamCapture emit_param_sites flipout likelihoods local_reparameterisation priors
    """,
    "bayeshnet.plotting": """
        HistoryLike PredictionLike calibration_curve elbo_trace regression_band reliability_diagram
    """,
    "bayeshnet.probabilistic": """
        gauss_hyperfan_init
    """,
}

# A renamed one warns, and is the same object as that of the new name.
RENAMED = {
    "bayeshnet.distributions.UnitGaussians": "bayeshnet.families.BlockGaussianWeights",
    "bayeshnet.distributions.UnitLayout": "bayeshnet.families.BlockLayout",
    "bayeshnet.entropy.Adversarial": "bayeshnet.entropy.experimental.Adversarial",
    "bayeshnet.entropy.SemiImplicit": "bayeshnet.entropy.experimental.SemiImplicit",
    "bayeshnet.entropy.SpectralStein": "bayeshnet.entropy.experimental.SpectralStein",
    "bayeshnet.entropy.spectral_score": "bayeshnet.entropy.experimental.spectral_score",
    "bayeshnet.errors.OwnWeightWarning": "bayeshnet.errors.SelfWeightWarning",
    "bayeshnet.infer.Report": "bayeshnet.evaluation.Diagnosis",
}

ALL = [(module, name) for module, names in NAMES.items() for name in names.split()]


def found(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("module", "name"), ALL, ids=[f"{module}.{name}" for module, name in ALL])
def test_a_public_name_of_0_1(module, name):
    old = f"{module}.{name}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        there = found(old)
    new = RENAMED.get(old)
    if new is None:
        assert not caught
        return
    assert [item.category for item in caught] == [FutureWarning]
    assert str(caught[0].message) == f"{old}: is renamed and will be removed in the next version; use {new}."
    assert caught[0].filename == __file__, "the warning points at the line that uses the old name"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert there is found(new)


def test_the_list_of_renames_is_of_names_of_0_1():
    assert set(RENAMED) <= {f"{module}.{name}" for module, name in ALL}


@pytest.mark.parametrize("module", ["bayeshnet.infer", "bayeshnet.distributions", "bayeshnet.entropy"])
def test_a_name_that_never_was(module):
    with pytest.raises(AttributeError, match=re.escape(f"module {module!r} has no attribute 'Nonsense'")):
        found(f"{module}.Nonsense")


def test_the_mixture_of_0_1_warns_when_it_is_made():
    """Its arguments changed, so that it is a function which makes the new one."""
    with pytest.warns(FutureWarning, match=r"families\.Mixture"):
        made = bayeshnet.infer.Mixture(3, of="low_rank")
    assert isinstance(made, families.Mixture)
