"""The accuracy of SparsyFed by the exponent of its powerpropagation.

`python -m experiments.beta_sweep --dataset=npz:cifar10.npz --output_dir=runs/beta`, or --smoke. See
experiments/studies/study.py for what the studies have in common.
"""

import functools

from experiments.studies.pictures import accuracy_against
from experiments.studies.study import SEEDS, SPARSITIES, Study, accuracy_table, run

STUDY = Study(
  "beta_sweep",
  blocks=(("--preset=studies/ours", "--beta=1,1.1,1.25,1.5,2", SPARSITIES, SEEDS),),
  smoke=("--sparsity=0.9,0.95,0.99", "--seed=0,1"),
  report=accuracy_table,
  draw=functools.partial(accuracy_against, "beta"),
)

if __name__ == "__main__":
  run(STUDY)
