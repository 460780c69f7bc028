"""The command `ppl-vae`."""

from ppl_vae.cli.main import app

__all__ = ["app"]
