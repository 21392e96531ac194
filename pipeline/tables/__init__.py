"""The score table: its schema, its writer, its reader."""
