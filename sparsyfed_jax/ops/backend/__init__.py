"""Tuning of single operations to a platform: one choice, and one switch.

`choice.by_platform` chooses by the platform that a program is lowered for. So what is traced does
not depend on the process that traces it, and a program that a CPU host lowers for a TPU is the
TPU's. `sparsyfed_jax.ops.untuned()` turns all tuning off, here and in the users of this room.

What is not for CPUs is plain XLA, written so that the compilers of a TPU v5e and an H100 make few
and small operations of it (`experiments/results/accelerators.md`): `digits` searches several bits
at a time, and bit by bit where products count faster, `count` and `pool` leave arrays in their
shape, and `passes` computes float32 convolutions for a TPU in a loop, which compile in a third of
the time (`cnn32`).

For CPUs, each trick stays for what it gains on a whole run: the time of a round without it,
as a multiple of the time with it, at 95 % sparsity on two cores with jax 0.10.2
(`experiments/results/tuning-cpu.md`):

- `conv`: products of patches instead of the native convolution, 21 on `cnn32`;
- `winograd`: Winograd's algorithm instead of patches, 1.5 on `cnn32`;
- `dense`: kernel gradients by outer products, 1.3 (FedAvg) and 1.1 (SparsyFed) on `mlp64`, 1.1 on
  `cnn32`;
- `pool`: ties of a max pool counted place by place, 1.06 on `cnn32` with FedAvg;
- `power`: powers by roots instead of logarithms, 1.2 on `mlp64`, 1.1 on `cnn32`;
- `count`: counts by variadic reductions instead of sums, 2.8 on `mlp64`, 1.2 on `cnn32`;
- `ops.share`: counts of a share written to memory by `choice.short_cut`, 1.5 on `mlp64`;
- `ops.select`: searches in large arrays from a guess, 1.2 on `cnn32`;
- `data.shuffle`: short lists for the shuffling of small clients, 1.07 on `mlp64-skewed`.

`ops.select` also compares keys in a loop on CPUs, for exactness; that costs 2 %.
"""
