"""Measurements whose tables are committed under results/."""

import pipelines  # noqa: F401 - first, for the threads' settings that OpenMP reads when torch loads
