"""Many corrections side by side."""
