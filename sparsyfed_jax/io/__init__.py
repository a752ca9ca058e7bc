"""What leaves the process: the wire format, checkpoints, and the files that a run writes."""
