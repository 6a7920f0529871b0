"""What one lent GPU can show in a quarter of an hour, in stages."""
