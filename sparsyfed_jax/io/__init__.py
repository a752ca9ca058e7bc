"""What a run keeps: checkpoints, the files that it writes, and trackers."""
