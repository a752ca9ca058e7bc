"""Boards of results: what runs of many methods came to, row by row, and what is made of them."""
