"""Where it runs: device, process groups, seeds, signals. Imports nothing of this project but errors."""
