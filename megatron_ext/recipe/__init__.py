"""What was asked: recipes from YAML files into a frozen schema. Imports no torch."""
