"""What is sampled from a trained model."""
