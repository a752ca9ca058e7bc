"""What a round costs: `python -m experiments.bench`."""
