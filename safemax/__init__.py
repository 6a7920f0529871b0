"""Unlearning for class-conditional diffusion models: tensors in, tensors out."""
