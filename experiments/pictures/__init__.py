"""All that draws."""
