"""The student: learns from the score table to rank patches, and prunes with what it learned."""
