"""Trained models in the formats of others: a file a format, and what they share."""
