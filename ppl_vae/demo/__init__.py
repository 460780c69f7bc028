"""The demonstration: what each model makes of the same handwritten digits, in numbers that compare and in pictures."""

from ppl_vae.demo.run import DemoSettings, run_demo

__all__ = ["DemoSettings", "run_demo"]
