"""Versions in the MLflow model registry: their files, aliases, gates and lineage."""
