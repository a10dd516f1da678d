#!/usr/bin/env bash
# Checks the CUDA device on the GPU of this machine, then times it. Every step is a process of its own that is ended after its own
# number of seconds, so that one that fails or hangs costs the others nothing. A table of verdicts comes last.
#
#   scripts/gpu.sh first     what is right: kernels, whole steps, the program; then the bandwidth of copies and one decode (300 s at most)
#   scripts/gpu.sh second    how fast it is, beside PyTorch where that can be imported (260 s at most)
#   scripts/gpu.sh fault STEP    one step of the first again, each kernel waited for, then under compute-sanitizer
#   scripts/gpu.sh pack      builds program and bench, compiles the kernels without a GPU, and puts both where the others look for them
#
# Steps use `target/gpu/cuda-bench`, `target/gpu/pagedraft` and the compiled kernels in `target/gpu/cache`, which `pack` makes on any
# machine with libnvrtc.so.13 (`pip install nvidia-cuda-nvrtc==13.0.88`); a GPU machine then has nothing to compile.
# `target/gpu/kit.tar.gz` has all of them, to be taken there.
# OUT: where logs go, `target/gpu/logs` where it is not set. XDG_CACHE_HOME: another place for compiled kernels than `target/gpu/cache`.
# PAGEDRAFT_GPU_BUDGET: seconds for all steps together.
# To try the script itself on the emulated GPU of tests/fake_cuda: PAGEDRAFT_GPU_SMALL=1 takes tiny sizes, PAGEDRAFT_GPU_SECONDS
# multiplies every time limit.
set -uo pipefail
cd "$(dirname "$0")/.."
self=$PWD/scripts/gpu.sh
kit=target/gpu
out=${OUT:-$kit/logs}
mkdir -p "$out"
bench=$kit/cuda-bench
program=$kit/pagedraft
# What pip put beside this Python is where libraries may be.
if command -v python3 > /dev/null; then
    export VIRTUAL_ENV="${VIRTUAL_ENV:-$(python3 -c 'import sys; print(sys.prefix)')}"
fi
export RUST_BACKTRACE=0
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$PWD/$kit/cache}"
small=()
if [ -n "${PAGEDRAFT_GPU_SMALL:-}" ]; then small=(--small); fi

pack() {
    set -e
    mkdir -p "$kit"
    cargo build --release --bin pagedraft
    local built
    built=$(cargo bench --bench cuda --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*\/cuda-[^"]*\)".*/\1/p' | tail -n 1)
    strip -o "$bench" "$built"
    strip -o "$program" "${CARGO_TARGET_DIR:-target}/release/pagedraft"
    XDG_CACHE_HOME="$PWD/$kit/cache" "$bench" --compile sm_90a
    tar -czf "$kit/kit.tar.gz" -C "$kit" cuda-bench pagedraft cache
    du -h "$kit/kit.tar.gz"
}

verdicts=()
began=$SECONDS
scale=${PAGEDRAFT_GPU_SECONDS:-1}
# run NAME SECONDS WANTED-CODE PATTERN COMMAND...: a step passes where it ends with this code and its log has a line of this pattern.
run() {
    local name=$1 limit=$(($2 * scale)) wanted=$3 pattern=$4 code=0 start=$SECONDS verdict=FAILED
    local left=$((budget * scale - SECONDS + began))
    shift 4
    if [ "$left" -lt 5 ]; then
        verdicts+=("$(printf '%-44s %-10s the time of all steps was spent' "$name" "NOT RUN")")
        return
    fi
    if [ "$limit" -gt "$left" ]; then limit=$left; fi
    echo "== $name: $*"
    { echo "== $name: $*"; timeout -k 5 "$limit" "$@"; } > "$kit/step.log" 2>&1 || code=$?
    if [ "$code" -eq "$wanted" ] && grep -Eq -- "$pattern" "$kit/step.log"; then
        verdict=passed
    elif [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        verdict="TIMED OUT"
    fi
    cat "$kit/step.log" >> "$out/$phase.log"
    # What a reader wants to see at once: figures, and what is wrong.
    if [ "$verdict" = passed ]; then
        sed -n '/^== table$/,$p' "$kit/step.log" | sed 1d >> "$out/$phase.tables.txt"
    else
        grep -E 'WRONG|FAILED|error|panicked|differ|DIFFERENT|note:' -A2 "$kit/step.log" | cut -c1-600 | head -n 30
        tail -n 6 "$kit/step.log" | cut -c1-600
    fi
    verdicts+=("$(printf '%-44s %-10s code %3s  %4s s' "$name" "$verdict" "$code" "$((SECONDS - start))")")
}

section() { # NAME SECONDS
    run "$1" "$2" 0 '^== table$' "$bench" --only "$1" "${small[@]}"
}

# The program writes the same greedy text on the GPU, in bfloat16 and in float16, as on the CPU, which writes the same in every type.
generate() {
    local prompt how text="the same"
    for prompt in "The old man" "Once upon a time" "She said that" "In the morning the ship"; do
        "$program" generate --device cpu --prompt "$prompt" --max-tokens 64 > "$kit/text.cpu" || return
        for how in "--dtype bf16" "--dtype f16" "--dtype bf16 --enforce-eager" "--dtype bf16 --draft ngram"; do
            # shellcheck disable=SC2086
            "$program" generate --device cuda $how --prompt "$prompt" --max-tokens 64 > "$kit/text.cuda" || return
            if ! cmp "$kit/text.cpu" "$kit/text.cuda"; then
                text="DIFFERENT"
                echo "$how, CPU's: $(cat "$kit/text.cpu")"
                echo "$how, GPU's: $(cat "$kit/text.cuda")"
            fi
        done
    done
    echo "text: $text"
    [ "$text" = "the same" ]
}

compare() { # DIR MORE...
    local dir=$kit/compare.$1
    shift
    rm -rf "$dir"
    "$program" bench compare --device cuda --num-iters 4 --num-iters-warmup 1 --out "$dir" "$@"
}

first() {
    if ! command -v nvidia-smi > /dev/null; then echo "note: there is no nvidia-smi"; fi
    run "the GPU" 20 0 . nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,pstate --format=csv
    section probe 40
    section rows 30
    section products 60
    section heads 60
    section checks 60
    run "text as on the CPU" 30 0 'text: the same' "$self" step generate
    run "compare: ways of speculating give the same" 40 0 'device busy' "$self" step compare sound
    run "compare: the injected fault is found" 40 1 DIFFERENT "$self" step compare fault --draft synthetic:1 \
        --inject-fault decode-graph-for-verify
    run "latency on the GPU" 30 0 . "$program" bench latency --device cuda
    section "0.6B decode" 60
}

second() {
    section "8B decode" 70
    section attention 40
    section prefill 40
    section scoring 40
    section promise 60
    section tokens 60
    run "PyTorch, bare, in CUDA graphs" 60 0 'tokens/s' python3 scripts/torch_peer.py
}

fault() {
    PAGEDRAFT_CUDA_SYNC=1 section "$1" 60
    run "$1 under memcheck" 90 0 'ERROR SUMMARY: 0 errors' compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$bench" --only "$1" --small
    run "$1 under racecheck" 90 0 'RACECHECK SUMMARY: 0' compute-sanitizer --tool racecheck --error-exitcode 9 \
        "$bench" --only "$1" --small
}

phase=${1:-}
case $phase in
    pack) pack; exit ;;
    step) "${@:2}"; exit ;; # a function of this file as a process, for `timeout`
    first) budget=${PAGEDRAFT_GPU_BUDGET:-300} steps=(first) ;;
    second) budget=${PAGEDRAFT_GPU_BUDGET:-260} steps=(second) ;;
    fault) budget=${PAGEDRAFT_GPU_BUDGET:-240} steps=(fault "${2:?which step}") ;;
    *) sed -n '2,16p' "$0"; exit 2 ;;
esac
if [ ! -x "$bench" ] && [ -f "$kit/kit.tar.gz" ]; then tar -xzf "$kit/kit.tar.gz" -C "$kit"; fi
if [ ! -x "$bench" ] || [ ! -x "$program" ]; then
    echo "error: $bench and $program are not there: scripts/gpu.sh pack"
    exit 2
fi
# Where no GPU is, there is nothing to be learned.
found=$(timeout 60 "$bench" --present 2>&1)
case $found in skipped*) echo "$found"; exit 0 ;; esac
rm -f "$out/$phase.log" "$out/$phase.tables.txt"
"${steps[@]}"
echo
echo "== figures and checks"
if [ -f "$out/$phase.tables.txt" ]; then grep -v '	 *passed	' "$out/$phase.tables.txt" | cut -c1-150; fi
echo
echo "== verdicts, after $((SECONDS - began)) s"
printf '%s\n' "${verdicts[@]}" | tee "$out/$phase.verdicts.txt"
! printf '%s\n' "${verdicts[@]}" | grep -Eq 'FAILED|TIMED OUT|NOT RUN'
