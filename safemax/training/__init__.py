"""The one training loop, its settings, hooks and checkpoints, and the interface of a method."""
