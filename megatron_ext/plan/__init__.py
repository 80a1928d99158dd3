"""What will happen: a loaded recipe into a frozen, hashed plan. Imports no torch."""
