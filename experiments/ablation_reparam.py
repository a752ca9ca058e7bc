"""SparsyFed with powerpropagation, without it (beta 1), and with the spectral exponents.

`python -m experiments.ablation_reparam --dataset=npz:cifar10.npz --output_dir=runs/reparam`, or
--smoke. See experiments/studies/study.py for what the studies have in common.
"""

import functools

from experiments.studies.pictures import accuracy_against
from experiments.studies.study import SEEDS, SPARSITIES, Study, accuracy_table, run

_COMMON = ("--preset=studies/ours", SPARSITIES, SEEDS)

STUDY = Study(
  "ablation_reparam",
  blocks=(
    (*_COMMON, "--reparameterisation=powerprop", "--beta=1.25,1"),
    (*_COMMON, "--reparameterisation=spectral"),
  ),
  smoke=("--sparsity=0.9,0.95,0.99", "--seed=0,1"),
  report=accuracy_table,
  draw=functools.partial(accuracy_against, "sparsity"),
)

if __name__ == "__main__":
  run(STUDY)
