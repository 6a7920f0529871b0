"""From samples to a verdict: the panel of metrics, what was retained, how attacks ended."""
