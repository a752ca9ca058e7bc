"""The programs: training, sweeps and benchmarks, with the plots and the terminal output they share.

Run them as modules, `python -m experiments.train --help`; `--preset=NAME` reads a flag file of
`presets/`.
"""
