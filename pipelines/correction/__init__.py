"""One base, one correction."""
