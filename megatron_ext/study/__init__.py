"""What is compared: arms, chains of stages that share their beginnings. Imports no torch."""
