"""What the panel measures, one file per metric; pure functions of probabilities, features or pixels."""
