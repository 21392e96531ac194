"""The masked autoencoder whose reconstructions tell what a patch is worth."""
