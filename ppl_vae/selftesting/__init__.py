"""Estimates, their errors, bounds and gradients against exact answers, on the user's own machine and device."""

from ppl_vae.selftesting.run import SelfTest, selftest

__all__ = ["SelfTest", "selftest"]
