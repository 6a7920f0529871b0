"""The search for hyperparameters: Optuna over the same functions that the pipelines call."""

import pipelines as pipelines  # first of all imports, for the thread settings that must precede torch
