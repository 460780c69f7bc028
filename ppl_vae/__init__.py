"""A probabilistic-programming toolkit for variational autoencoders, on Pyro and PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_vae import (
        autoregressive,
        data,
        decoders,
        distributions,
        encoders,
        figures,
        latents,
        networks,
        priors,
        quality,
        schedules,
    )
    from ppl_vae.autoencoder import Autoencoder
    from ppl_vae.checking import CheckReport, check
    from ppl_vae.conditional import ConditionalVAE, SemiSupervisedVAE
    from ppl_vae.errors import (
        CheckpointError,
        DataError,
        EstimateError,
        GroupError,
        LockedError,
        PairError,
        PplVaeError,
        StorageError,
    )
    from ppl_vae.evaluation import (
        Agreement,
        AnnealedLogLikelihood,
        Annealing,
        Calibration,
        Comparison,
        EscalatedLogLikelihood,
        ExactLogLikelihood,
        GapDecomposition,
        KCurve,
        Ledger,
        LocalSearch,
        LogLikelihood,
        PosteriorPredictive,
        Sandwich,
        agreement,
        annealed_importance_sampling,
        bidirectional_monte_carlo,
        calibrate,
        compare,
        escalate,
        gap_decomposition,
        k_curve,
        ledger,
        log_evidence,
        log_likelihood,
        posterior_predictive,
    )
    from ppl_vae.exact import GMM, PPCA, AmortisedCategorical, TrainableGMM
    from ppl_vae.hierarchical import HierarchicalVAE
    from ppl_vae.objectives import ELBO, IWAE, Renyi, Supervised, from_pyro, scale_latents
    from ppl_vae.pair import Pair, as_pair
    from ppl_vae.selftesting import SelfTest, selftest
    from ppl_vae.svi import Fit, Replay, fit, replay
    from ppl_vae.vae import VAE

__all__ = [
    "ELBO",
    "GMM",
    "IWAE",
    "PPCA",
    "VAE",
    "Agreement",
    "AmortisedCategorical",
    "AnnealedLogLikelihood",
    "Annealing",
    "Autoencoder",
    "Calibration",
    "CheckReport",
    "CheckpointError",
    "Comparison",
    "ConditionalVAE",
    "DataError",
    "EscalatedLogLikelihood",
    "EstimateError",
    "ExactLogLikelihood",
    "Fit",
    "GapDecomposition",
    "GroupError",
    "HierarchicalVAE",
    "KCurve",
    "Ledger",
    "LocalSearch",
    "LockedError",
    "LogLikelihood",
    "Pair",
    "PairError",
    "PosteriorPredictive",
    "PplVaeError",
    "Renyi",
    "Replay",
    "Sandwich",
    "SelfTest",
    "SemiSupervisedVAE",
    "StorageError",
    "Supervised",
    "TrainableGMM",
    "agreement",
    "annealed_importance_sampling",
    "as_pair",
    "autoregressive",
    "bidirectional_monte_carlo",
    "calibrate",
    "check",
    "compare",
    "data",
    "decoders",
    "distributions",
    "encoders",
    "escalate",
    "figures",
    "fit",
    "from_pyro",
    "gap_decomposition",
    "k_curve",
    "latents",
    "ledger",
    "log_evidence",
    "log_likelihood",
    "networks",
    "posterior_predictive",
    "priors",
    "quality",
    "replay",
    "scale_latents",
    "schedules",
    "selftest",
]

__version__ = "0.1.0"

# Where each name lives; it is imported on first use, so that `ppl-vae --help` does not wait for torch.
_HOMES = {
    "autoencoder": ("Autoencoder",),
    "checking": ("CheckReport", "check"),
    "conditional": ("ConditionalVAE", "SemiSupervisedVAE"),
    "errors": (
        *("CheckpointError", "DataError", "EstimateError", "GroupError", "LockedError", "PairError", "PplVaeError"),
        "StorageError",
    ),
    "evaluation": (
        *("Agreement", "AnnealedLogLikelihood", "Annealing", "Calibration", "Comparison", "EscalatedLogLikelihood"),
        *("ExactLogLikelihood", "GapDecomposition", "KCurve", "Ledger", "LocalSearch", "LogLikelihood"),
        *("PosteriorPredictive", "Sandwich"),
        *("agreement", "annealed_importance_sampling", "bidirectional_monte_carlo", "calibrate", "compare", "escalate"),
        *("gap_decomposition", "k_curve", "ledger", "log_evidence", "log_likelihood", "posterior_predictive"),
    ),
    "exact": ("GMM", "PPCA", "AmortisedCategorical", "TrainableGMM"),
    "hierarchical": ("HierarchicalVAE",),
    "objectives": ("ELBO", "IWAE", "Renyi", "Supervised", "from_pyro", "scale_latents"),
    "pair": ("Pair", "as_pair"),
    "selftesting": ("SelfTest", "selftest"),
    "svi": ("Fit", "Replay", "fit", "replay"),
    "vae": ("VAE",),
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is not None:
            value = getattr(import_module(f"ppl_vae.{home}"), name)
        elif name in __all__:
            value = import_module(f"ppl_vae.{name}")
        else:
            raise AttributeError(f"module 'ppl_vae' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
