"""The command line: parameters as text, and the MLproject that follows from them."""
