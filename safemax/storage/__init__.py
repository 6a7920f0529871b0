"""Files that are whole or absent: caches, checkpoints, manifests, and the digest of the code behind them."""
