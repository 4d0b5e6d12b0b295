"""Flax Linen modules: Transformer encoder, convolutions by patches, autoencoder, the guide."""
