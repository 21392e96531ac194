"""The arms of `patchsieve prove` shared out on Ray: one trial is one task."""
