"""The training job, from its plan to the workers on Ray Train."""
