"""The engine: what a method is, local training, the cohort, the server step, the simulation."""
