"""Flax Linen modules: Transformer encoder, patch convolutions, autoencoder, guide."""
