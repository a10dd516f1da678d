#!/bin/sh
# Compiles a CUDA source for the CPU with the emulator beside this script, and prints the path of the library.
#
#     compile.sh OUT SOURCE KERNELS [-DNAME=VALUE ..]
#
# OUT is the directory that keeps the libraries, SOURCE a name such as attention.cu, KERNELS the names of its kernels, separated by blanks. A
# library is named after what the preprocessor makes of the source, so that all macros that lead to the same text share one library. Several
# processes may compile at the same time: each file is written beside its place and then renamed.
set -eu
out=$1 source=$2 kernels=$3
shift 3
emulate=$(cd "$(dirname "$0")" && pwd)
cuda=$(dirname "$emulate")
include="-I$emulate -I$cuda -I$(dirname "$(dirname "$cuda")")/model/cuda"
# Nothing is fused or reordered. Kernels are found in their own library before any other, because `accept` is in libc too.
flags="-std=c++20 -O2 -ffp-contract=off -fno-strict-aliasing -w -fPIC -fcf-protection=none -U_FORTIFY_SOURCE"

digest() { { echo "$flags"; cat; } | sha256sum | cut -c1-16; }

# The emulator is parsed once: its standard headers take longer than most kernels.
parsed=$out/emulate-$(digest <"$emulate/emulate.h")
if ! [ -e "$parsed/emulate.h.gch" ]; then
  mkdir -p "$parsed"
  g++ $flags -x c++-header "$emulate/emulate.h" -o "$parsed/$$"
  mv "$parsed/$$" "$parsed/emulate.h.gch"
fi

text=$out/$$.cpp
trap 'rm -f "$text"' EXIT
{
  echo "#include <$source>"
  for kernel in $kernels; do echo "EMULATED($kernel)"; done
} >"$text"
library=$out/${source%.cu}-$(g++ $flags -include emulate.h $include "$@" -E -P "$text" | digest).so
if ! [ -e "$library" ]; then
  g++ $flags -shared -Wl,-Bsymbolic -I"$parsed" -include emulate.h $include "$@" "$text" -o "$library.$$"
  mv "$library.$$" "$library"
fi
echo "$library"
