"""What is asked of Ray beside work: nodes, room for actors, sessions, metrics, jobs."""
