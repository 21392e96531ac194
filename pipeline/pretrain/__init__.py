"""Pretraining a small masked autoencoder, for a teacher of one's own."""
