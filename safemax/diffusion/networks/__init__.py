"""The networks that can be unlearned: by name, by kind, and those that diffusers does not have."""
