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
        latents,
        networks,
        priors,
        quality,
        schedules,
    )
    from ppl_vae.autoencoder import Autoencoder
    from ppl_vae.checking import CheckReport, check
    from ppl_vae.conditional import ConditionalVAE, SemiSupervisedVAE
    from ppl_vae.errors import DataError, EstimateError, GroupError, PairError, PplVaeError
    from ppl_vae.evaluation import (
        AnnealedLogLikelihood,
        Annealing,
        GapDecomposition,
        LocalSearch,
        LogLikelihood,
        Sandwich,
        annealed_importance_sampling,
        bidirectional_monte_carlo,
        gap_decomposition,
        log_evidence,
        log_likelihood,
    )
    from ppl_vae.exact import GMM, PPCA, AmortisedCategorical, TrainableGMM
    from ppl_vae.hierarchical import HierarchicalVAE
    from ppl_vae.objectives import ELBO, IWAE, Renyi, Supervised, from_pyro, scale_latents
    from ppl_vae.pair import Pair, as_pair
    from ppl_vae.svi import Fit, fit
    from ppl_vae.vae import VAE

__all__ = [
    "ELBO",
    "GMM",
    "IWAE",
    "PPCA",
    "VAE",
    "AmortisedCategorical",
    "AnnealedLogLikelihood",
    "Annealing",
    "Autoencoder",
    "CheckReport",
    "ConditionalVAE",
    "DataError",
    "EstimateError",
    "Fit",
    "GapDecomposition",
    "GroupError",
    "HierarchicalVAE",
    "LocalSearch",
    "LogLikelihood",
    "Pair",
    "PairError",
    "PplVaeError",
    "Renyi",
    "Sandwich",
    "SemiSupervisedVAE",
    "Supervised",
    "TrainableGMM",
    "annealed_importance_sampling",
    "as_pair",
    "autoregressive",
    "bidirectional_monte_carlo",
    "check",
    "data",
    "decoders",
    "distributions",
    "encoders",
    "fit",
    "from_pyro",
    "gap_decomposition",
    "latents",
    "log_evidence",
    "log_likelihood",
    "networks",
    "priors",
    "quality",
    "scale_latents",
    "schedules",
]

__version__ = "0.1.0"

# Where each name lives; it is imported on first use, so that `ppl-vae --help` does not wait for torch.
_HOMES = {
    "autoencoder": ("Autoencoder",),
    "checking": ("CheckReport", "check"),
    "conditional": ("ConditionalVAE", "SemiSupervisedVAE"),
    "errors": ("DataError", "EstimateError", "GroupError", "PairError", "PplVaeError"),
    "evaluation": (
        *("AnnealedLogLikelihood", "Annealing", "GapDecomposition", "LocalSearch", "LogLikelihood", "Sandwich"),
        *("annealed_importance_sampling", "bidirectional_monte_carlo", "gap_decomposition"),
        *("log_evidence", "log_likelihood"),
    ),
    "exact": ("GMM", "PPCA", "AmortisedCategorical", "TrainableGMM"),
    "hierarchical": ("HierarchicalVAE",),
    "objectives": ("ELBO", "IWAE", "Renyi", "Supervised", "from_pyro", "scale_latents"),
    "pair": ("Pair", "as_pair"),
    "svi": ("Fit", "fit"),
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
