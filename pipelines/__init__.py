"""Thin MLflow entry points over safemax: parse the parameters, open a run, call the library, log what came out."""

import os
import sys

# OpenMP reads these when torch loads: idle threads that spin cost up to 28 times the work itself on a shared core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# In a log file every refresh of a progress bar is a line of its own.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "15")
