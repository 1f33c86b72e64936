"""FINOLA: encoders, decoder, autoencoder, masked pre-training and the baselines (arXiv 2305.16319, 2310.12976)."""
