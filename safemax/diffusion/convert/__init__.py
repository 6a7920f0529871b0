"""Public checkpoints of other layouts as models of this project, by the names of their tensors."""
