"""How an estimate of log p(x) is written: with its error, or as a lower bound where some data do not bear it."""

from __future__ import annotations

import math

__all__ = ["in_words", "is_lower_bound"]


def is_lower_bound(share_untrusted: float) -> bool:
    """Whether a mean over data is only a lower bound: the estimate of one of them, at least, cannot be trusted.

    That one is rather too low, by an unknown amount, so that no error of the mean covers it.
    """
    return share_untrusted > 0


def in_words(value: float, stderr: float | None, share_untrusted: float) -> str:
    """An estimate and its error to two digits of the error, never fewer than two decimals.

    Args:
        value: The estimate, nats per datum; one that is infinite has no error to write.
        stderr: Its Monte Carlo standard error; None if it is exact, NaN if it is not known, which is left out.
        share_untrusted: Share of the data whose estimate cannot be trusted, in [0, 1].

    Example:
        >>> in_words(-22.3111, 0.0123, 0.0), in_words(-22.3111, 0.0123, 0.1), in_words(-22.3111, None, 0.0)
        ('-22.311 ± 0.012', '≥ -22.31', '-22.31 exact')
    """
    if stderr is None:
        return f"{value:.2f} exact"
    if is_lower_bound(share_untrusted):
        return f"≥ {value:.2f}"
    if math.isnan(stderr) or math.isinf(value):
        return f"{value:.2f}"
    decimals = max(2, 1 - math.floor(math.log10(stderr))) if 1e-6 <= stderr < 1.0 else 2
    return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"
