"""Processes: signals, and workers that run jobs."""
