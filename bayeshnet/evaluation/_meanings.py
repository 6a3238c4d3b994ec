"""What the numbers of a diagnosis mean, in a few words."""

from __future__ import annotations

__all__ = ["MEANING"]

MEANING: dict[str, str] = {
    "elbo": "evidence lower bound, nats",
    "log_evidence": "by smoothed importance weights, nats",
    "evidence_gap": "log_evidence - elbo: divergence of guide from posterior",
    "k_hat": "tail of the importance weights",
    "ess": "draws that the weighted ones are worth",
    "sign_mismatch": "share of determinants of the rarer sign; above 0 it folds",
    "preimages": "noise vectors per draw; above 1 it folds",
    "entropy_excess": "over-estimate of the entropy by folding, nats",
    "holes": "share of values around the draws that no noise was found for",
    "full_support": "1 if there is known to be noise for every value",
    "log_q_bias": "by how much log q is too low on average, nats",
    "search_missed": "share of draws whose noise the search would miss",
    "entropy_gap": "entropy less that by importance sampling, nats",
    "effective_share": "effective share of the importance samples behind it",
    "self_weight": "weight of a draw's own noise in the semi-implicit bound",
    "stein_share": "entropy gradient seen by the estimated score; 1 is right",
    "spread": "spread that the estimated score leads to; 1 is right",
    "noise_share": "gradient of the noise scale, estimated over exact; 1 is right",
    "elbo_excess": "by how much the reported ELBO is too high, nats",
    "accuracy": "of the discriminator; near 1 it is saturated",
    "noise": "mean of the observation noise under the guide",
    "residual_std": "of the training targets from the predicted mean",
    "noise_ratio": "noise / residual_std",
    "spread_ratio": "std of functions, guide over chain",
    "chain_noise": "mean of the observation noise along the chain",
    "chain_noise_ratio": "noise / chain_noise",
    "chain_rhat": "split r-hat of functions, 90 % quantile",
    "chain_ess": "effective draws of the chain, median over functions",
}
