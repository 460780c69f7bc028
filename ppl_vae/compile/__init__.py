"""Any pair, compiled: its programs run once, what they do to tensors is recorded and compiled."""

from ppl_vae.compile.build import Compiled, compile_function
from ppl_vae.compile.capture import CaptureError, capture
from ppl_vae.compile.lazy import Lazy, flipped
from ppl_vae.compile.payback import Payback
from ppl_vae.compile.snapshot import Snapshot

__all__ = ["CaptureError", "Compiled", "Lazy", "Payback", "Snapshot", "capture", "compile_function", "flipped"]
