"""The wire format: models as bytes, their sizes, and values in fewer bits."""
