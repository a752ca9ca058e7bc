"""SparsyFed's pruned activations: by the threshold of each batch, of the first one, or none pruned.

`python -m experiments.ablation_activation --dataset=npz:cifar10.npz --output_dir=runs/activation`,
or --smoke. See experiments/studies/study.py for what the studies have in common.
"""

import functools

from experiments.studies.pictures import accuracy_against
from experiments.studies.study import SEEDS, SPARSITIES, Study, accuracy_table, run

_COMMON = ("--preset=studies/ours", SPARSITIES, SEEDS)

STUDY = Study(
  "ablation_activation",
  blocks=(
    (*_COMMON, "--activation_threshold=batch,first_batch"),
    (*_COMMON, "--activation_floor=1"),  # which keeps all
  ),
  # Only convolutions reuse a threshold.
  smoke=(
    "--model=cnn",
    "--num_clients=10",
    "--clients_per_round=2",
    "--sparsity=0.9,0.99",
    "--seed=0,1",
  ),
  report=accuracy_table,
  draw=functools.partial(accuracy_against, "sparsity"),
)

if __name__ == "__main__":
  run(STUDY)
