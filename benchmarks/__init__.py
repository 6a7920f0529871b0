"""Measurements whose tables are committed in results/."""

import pipelines  # noqa: F401 - first, since it sets the thread settings that OpenMP reads when torch is imported
