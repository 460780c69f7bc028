"""Every estimator against its exact answer, on the user's own machine and device."""

from ppl_vae.selftesting.run import SelfTest, selftest

__all__ = ["SelfTest", "selftest"]
