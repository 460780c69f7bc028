"""`python -m ppl_vae` is the command `ppl-vae`: what `torchrun -m ppl_vae` starts."""

import sys

from ppl_vae.cli import run

if __name__ == "__main__":
    sys.argv[0] = "ppl-vae"
    run()
