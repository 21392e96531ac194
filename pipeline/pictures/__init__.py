"""Sheets of pictures for people, and the photographs of the demo."""
