"""What kept patches are worth to a model, beside every plainer way to the same cost."""
