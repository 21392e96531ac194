"""What several test files share; each module says its one subject."""
