#!/usr/bin/env bash
# Checks and times the CUDA device on the GPU of this machine, PyTorch beside it where it can be imported; one table last.
# Without a GPU it says so and ends well. Needs libnvrtc.so.13 (the CUDA 13 toolkit, or `pip install nvidia-cuda-nvrtc==13.0.88`);
# products that are free to depend on the batch need libcublasLt.so.13 too.
#
#   scripts/h100.sh [words of the sections to run; without any, the checks of the whole program too]
#
# PAGEDRAFT_CUDA_BENCH: the bench, built elsewhere (`cargo bench --bench cuda --no-run` says where it is); without, it is built.
# PAGEDRAFT: the program; with it, `pagedraft bench compare` runs on the GPU, and once more with a fault that it has to find; then
# `bench latency --deterministic-cost`.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p target
words=$(IFS=,; echo "$*")
status=0
summary=target/summary.txt
: > "$summary"
# What pip put beside this Python is where the libraries may be.
if command -v python3 > /dev/null; then
    export VIRTUAL_ENV="${VIRTUAL_ENV:-$(python3 -c 'import sys; print(sys.prefix)')}"
fi

bench=${PAGEDRAFT_CUDA_BENCH:-}
if [ -z "$bench" ]; then
    bench=$(cargo bench --bench cuda --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*\/cuda-[^"]*\)".*/\1/p' | tail -n 1)
fi
"$bench" --only "$words" | tee target/cuda.txt || status=$?
if [ "$status" -eq 2 ] || grep -q '^skipped' target/cuda.txt; then
    exit "$status"
fi

# The name of a check, the exit code it should have, its own, and what its output should say.
check() {
    local verdict=FAILED
    if [ "$3" -eq "$2" ] && grep -q -- "$4" target/check.txt; then verdict=passed; else status=1; fi
    printf '%-72s\t%12s\t\n' "$1" "$verdict" | tee -a "$summary"
}

if [ -z "$words" ] && [ -n "${PAGEDRAFT:-}" ]; then
    runs=$(mktemp -d target/compare.XXXXXX)
    compare=("$PAGEDRAFT" bench compare --device cuda --num-iters 4 --num-iters-warmup 1)
    code=0
    timeout 180 "${compare[@]}" --out "$runs/sound" 2>&1 | tee target/check.txt || code=$?
    check "compare: every way of speculating gives the same" 0 "$code" 'device busy'
    code=0
    timeout 180 "${compare[@]}" --out "$runs/fault" --draft synthetic:1 --inject-fault decode-graph-for-verify \
        > target/check.txt 2>&1 || code=$?
    check "compare: a decode graph replayed for verify rows is found" 1 "$code" DIFFERENT
    code=0
    timeout 180 "$PAGEDRAFT" bench latency --device cuda --deterministic-cost 2>&1 | tee target/check.txt || code=$?
    check "latency: what determinism costs is told" 0 "$code" 'determinism costs'
fi
if [ -z "$words" ] && command -v compute-sanitizer > /dev/null; then
    code=0
    timeout 300 compute-sanitizer --tool memcheck --error-exitcode 9 "$bench" --only checks > target/check.txt 2>&1 || code=$?
    [ "$code" -eq 0 ] || tail -n 20 target/check.txt
    check "checks under compute-sanitizer memcheck" 0 "$code" 'ERROR SUMMARY: 0 errors'
fi

: > target/torch_peer.txt
if command -v python3 > /dev/null; then
    timeout 240 python3 scripts/torch_peer.py > target/torch_peer.txt 2> target/torch_peer.log ||
        { echo "PyTorch did not come to its end (exit code $?):"; tail -n 3 target/torch_peer.log; }
fi

# Ratios of tokens/s, where both have a line of the same name.
awk -F '\t' '
    { name = $1; sub(/ +$/, "", name); value = $2; gsub(/ /, "", value) }
    FILENAME == ARGV[1] { if (NF > 1) peer[name] = value; next }
    /^== table$/ { table = 1; next }
    table {
        print
        plain = name
        sub(/, overlapped/, "", plain)
        if (plain in peer && peer[plain] > 0) {
            goal = plain ~ /prefill/ ? 0.9 : 1.1
            ratio = value / peer[plain]
            ratios = ratios sprintf("%-72s\t%12.3f\tgoal %s: %s\n", name " / PyTorch", ratio, goal, ratio >= goal ? "met" : "missed")
        }
    }
    END { printf "%s", ratios }
' target/torch_peer.txt target/cuda.txt >> "$summary"
echo
cat target/torch_peer.txt
echo
cat "$summary"
exit "$status"
