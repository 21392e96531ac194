"""What makes any model run fast on one device: precision, batch size, layers, launches, memory."""
