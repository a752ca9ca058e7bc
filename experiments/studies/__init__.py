"""What the scripts of the paper's tables and pictures share: grids of runs, tables, pictures."""
