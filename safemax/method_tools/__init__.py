"""What several methods calculate with: gradients, Fisher information, a frozen teacher, target labels."""
