"""Sample sources made on the spot: real, licence-clean, and the same for the same seed."""
