"""Ways to score patches that need no training, or next to none."""
