#!/usr/bin/env bash
# Measures on one GPU, in at most eleven minutes, what a round costs beside a bare PyTorch loop, and
# what of the authors' runs on CIFAR-10 fits: experiments/measure_gpu.sh DIRECTORY (or OUT=DIRECTORY).
# Every step leaves its files, output, command and commit there; the same DIRECTORY again goes on with
# what is not done.
#
# CIFAR10            an npz of it: ResNet-18 with SparsyFed, then FedAvg, for as many of 700 rounds as
#                    fit
# PLAN               a folder of experiments.plan for this GPU and the preset cifar10-lda1000, made
#                    before: a few rounds are held against it (needs CIFAR10)
# STEPS              which of these, of those below; by default all
# COMPUTE_DTYPE      float32, tf32 or bfloat16, for both sides
# PYTHON             has jax and this project's requirements
# TORCH_PYTHON       has PyTorch with CUDA; without PyTorch there are no peers
# SCALING_WORKLOAD   of the picture
# REFERENCE_LIMIT    seconds for the authors' runs
# TIME_LIMIT         seconds for everything; what does not fit is left out
# TINY               1 to try it all on a CPU: one client a round, once. CIFAR10 may have few examples,
#                    and PLAN is of --target=cpu:1 with --num_clients=10 --clients_per_round=1 and
#                    --dataset=npz:CIFAR10
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

directory="${1:-${OUT:-}}"
if [[ -z "$directory" ]]; then
  echo "error: name a directory for the results" >&2
  exit 2
fi
mkdir -p -- "$directory" || exit 2
compute_dtype="${COMPUTE_DTYPE:-float32}"
python="${PYTHON:-python3}"
torch_python="${TORCH_PYTHON:-$python}"
scaling_workload="${SCALING_WORKLOAD:-mlp64}"
steps="${STEPS:-planned resnet18-c10 cnn28-1k lenet-5e resnet18-5e reference cnn32 mlp64 lowerings \
kth_magnitude scaling skewed}"
tiny="${TINY:-}"
slower=${tiny:+10} # a CPU is
deadline=$((SECONDS + ${TIME_LIMIT:-640} * ${slower:-1}))
failed=()

# step NAME SECONDS COMMAND...: a step that fails or runs too long does not cost the others.
step() {
  local name="$1" limit=$(($2 * ${slower:-1})) left=$((deadline - SECONDS))
  shift 2
  if [[ " $steps " != *" $name "* ]]; then
    return
  fi
  if ((left < 20)); then
    echo "$name: left out, no time" >&2
    failed+=("$name")
    return
  fi
  local command
  command=$(printf '%q ' "$@")
  if [[ -e "$directory/$name.done" ]]; then
    if [[ "$command" == "$(<"$directory/$name.command")" ]]; then
      echo "$name: done before" >&2
    else
      echo "$name: done before by another command, $name.command; name another directory" >&2
      failed+=("$name")
    fi
    return
  fi
  if [[ "$name" != reference ]]; then # which goes on
    rm -rf -- "${directory:?}/$name"
  fi
  echo "$command" >"$directory/$name.command"
  git rev-parse HEAD >"$directory/$name.commit" 2>/dev/null || true
  local start=$SECONDS
  # To the whole group, and hard in the end, so that nothing holds the GPU afterwards.
  timeout --kill-after=15 "$((limit < left ? limit : left))" "$@" \
    >"$directory/$name.out" 2> >(tee "$directory/$name.err" >&2)
  local code=$?
  echo "$name: exit code $code after $((SECONDS - start)) s" >&2
  if [[ "$name" == reference && $code -eq 124 ]]; then
    echo "$name: not at its end; the same directory again goes on with it" >&2
  elif ((code)); then
    failed+=("$name")
  else
    touch -- "$directory/$name.done"
  fi
}

few=() # clients and rounds of what is measured
one_run=()
scaling_sizes=10,100,1000,10000
scaling_repeats=3
if [[ -n "$tiny" ]]; then
  scaling_sizes=1,2
  scaling_repeats=1
  few=(--num_clients=2 --clients_per_round=1 --repeats=1)
  one_run=(--num_clients=10 --clients_per_round=1 --num_devices=1)
fi

bench() {
  local name="$1" limit="$2"
  shift 2
  step "$name" "$limit" "$python" -m experiments.bench --output_dir="$directory/$name" \
    --compute_dtype="$compute_dtype" "$@" "${few[@]}"
}

has_torch=false
if "$torch_python" -c "import torch; assert '$tiny' or torch.cuda.is_available()" 2>/dev/null; then
  has_torch=true
else
  echo "no PyTorch with CUDA in $torch_python: measured without peers" >&2
fi

# peer WORKLOAD: sets `peer` to the flag, or to nothing.
peer() {
  peer=()
  if $has_torch; then
    local loop="experiments/peers/torch_loop.py --workload=$1 --turns --dtype=$compute_dtype"
    loop+="${tiny:+ --clients_per_round=1}"
    peer=("--peer_command=$1=$torch_python $loop")
  fi
}

nvidia-smi >>"$directory/nvidia-smi.txt" 2>&1 || true # of every start; it tells the time
if [[ -n "${CIFAR10:-}" && -n "${PLAN:-}" ]]; then
  step planned 120 "$python" -m experiments.train --preset=cifar10-lda1000 --rounds=4 \
    --eval_every=2 --dataset="npz:$CIFAR10" --output_dir="$directory/planned" "${one_run[@]}"
  if [[ -e "$directory/planned.done" ]]; then
    "$python" -m experiments.plan.checking "$PLAN" "$directory/planned" >"$directory/planned.md" ||
      failed+=("planned.md")
  fi
fi
peer resnet18-c10
bench resnet18-c10 150 --workload=resnet18-c10 --repeats=4 "${peer[@]}"
peer cnn28-1k
bench cnn28-1k 90 --workload=cnn28-1k --repeats=6 "${peer[@]}"
peer lenet-5e
bench lenet-5e 90 --workload=lenet-5e --repeats=5 --algorithm=fedavg "${peer[@]}"
peer resnet18-5e
bench resnet18-5e 150 --workload=resnet18-5e --repeats=3 --algorithm=fedavg "${peer[@]}"
if [[ -n "${CIFAR10:-}" ]]; then
  # SIGTERM ends it after a checkpoint.
  step reference "${REFERENCE_LIMIT:-240}" "$python" -m experiments.reference \
    --dataset="npz:$CIFAR10" --checkpoint_every=10 --output_dir="$directory/reference" \
    "${one_run[@]}" ${tiny:+--rounds=4}
fi
peer cnn32
bench cnn32 120 --workload=cnn32 --metrics=on,off "${peer[@]}"
peer mlp64
bench mlp64 90 --workload=mlp64 "${peer[@]}"
step lowerings 60 "$python" -m experiments.lowerings ${tiny:+--repeats=1 --num_clients=1}
bench kth_magnitude 45 --workload=kth_magnitude
step scaling 240 "$python" -m experiments.scaling --workload="$scaling_workload" \
  --compute_dtype="$compute_dtype" --output_dir="$directory/scaling" --repeats="$scaling_repeats" \
  --clients_per_round="$scaling_sizes"
bench skewed 120 --workload=mlp64-even,mlp64-skewed --repeats=10

cat "$directory"/*/table.md
if ((${#failed[@]})); then
  echo "not measured: ${failed[*]}" >&2
  exit 1
fi
