"""A fair contest: every method tuned by the same rules on the same budget, measured over bases, classes and seeds."""
