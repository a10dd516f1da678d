#!/bin/sh
# Builds, checks and times the CUDA device on the GPU of this machine, PyTorch beside it where it can be imported; one table
# last. Without a GPU it says so and ends well. Needs a Rust toolchain and libnvrtc.so.13 (the CUDA 13 toolkit, or
# `pip install nvidia-cuda-nvrtc==13.0.88`); products that are free to depend on the batch need libcublasLt.so.13 too.
#
#   scripts/h100.sh [words of the sections to run]
set -eu
cd "$(dirname "$0")/.."
cargo bench --bench cuda --no-run
python3 scripts/torch_peer.py > target/torch_peer.txt 2> target/torch_peer.log || tail -3 target/torch_peer.log
cargo bench --bench cuda -- --only "${*:-}" | tee target/cuda.txt
echo
cat target/torch_peer.txt
