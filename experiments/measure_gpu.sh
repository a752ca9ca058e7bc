#!/usr/bin/env bash
# Measures on one GPU, in at most ten minutes, what a round costs beside a bare PyTorch loop, and how
# it grows with its clients: experiments/measure_gpu.sh DIRECTORY (or OUT=DIRECTORY).
#
# COMPUTE_DTYPE      float32, tf32 or bfloat16, for both sides
# PYTHON             has jax and this project's requirements
# TORCH_PYTHON       has PyTorch with CUDA; without PyTorch there are no peers
# SCALING_WORKLOAD   of the picture
# TIME_LIMIT         seconds for everything; what does not fit is left out
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
deadline=$((SECONDS + ${TIME_LIMIT:-580}))
failed=()

# step NAME SECONDS COMMAND...: a step that fails or runs too long does not cost the others.
step() {
  local name="$1" limit="$2" left=$((deadline - SECONDS))
  shift 2
  if ((left < 20)); then
    echo "$name: left out, no time" >&2
    failed+=("$name")
    return
  fi
  local start=$SECONDS
  # To the whole group, and hard in the end, so that nothing holds the GPU afterwards.
  timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" \
    >"$directory/$name.out" 2> >(tee "$directory/$name.err" >&2)
  local code=$?
  echo "$name: exit code $code after $((SECONDS - start)) s" >&2
  if ((code)); then
    failed+=("$name")
  fi
}

bench() {
  local name="$1" limit="$2"
  shift 2
  step "$name" "$limit" "$python" -m experiments.bench --output_dir="$directory/$name" \
    --compute_dtype="$compute_dtype" "$@"
}

has_torch=false
if "$torch_python" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
  has_torch=true
else
  echo "no PyTorch with CUDA in $torch_python: measured without peers" >&2
fi

# peer WORKLOAD: sets `peer` to the flag, or to nothing.
peer() {
  peer=()
  if $has_torch; then
    local loop="experiments/peers/torch_loop.py --workload=$1 --turns --dtype=$compute_dtype"
    peer=("--peer_command=$1=$torch_python $loop")
  fi
}

nvidia-smi >"$directory/nvidia-smi.txt" 2>&1 || true
peer resnet18-c10
bench resnet18-c10 240 --workload=resnet18-c10 --repeats=6 "${peer[@]}"
peer cnn28-1k
bench cnn28-1k 120 --workload=cnn28-1k --repeats=6 "${peer[@]}"
peer cnn32
bench cnn32 120 --workload=cnn32 --metrics=on,off "${peer[@]}"
peer mlp64
bench mlp64 90 --workload=mlp64 "${peer[@]}"
step lowerings 60 "$python" -m experiments.lowerings
bench kth_magnitude 45 --workload=kth_magnitude
step scaling 240 "$python" -m experiments.scaling --workload="$scaling_workload" \
  --compute_dtype="$compute_dtype" --output_dir="$directory/scaling" --repeats=3 \
  --clients_per_round=10,100,1000,10000
bench skewed 120 --workload=mlp64-even,mlp64-skewed --repeats=10

cat "$directory"/*/table.md
if ((${#failed[@]})); then
  echo "not measured: ${failed[*]}" >&2
  exit 1
fi
