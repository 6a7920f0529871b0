"""A model measured or attacked, without being changed."""
