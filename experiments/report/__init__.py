"""One page of a folder of runs: `python -m experiments.report RUNS --out=report.html`."""
