"""Decode and prefill of the benched shapes in PyTorch: static cache, a CUDA graph a case, SDPA, no torch.compile (which takes
minutes). A line a figure, with the name that the CUDA bench gives its own and a tab before the value.

    python3 scripts/torch_peer.py [--quick]
"""

import argparse
import gc
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("skipped: PyTorch cannot be imported")
    sys.exit(0)
if not torch.cuda.is_available():
    print("skipped: PyTorch sees no GPU")
    sys.exit(0)

# name: vocabulary, hidden, inner, layers, heads, key heads, head dim, norms of heads
SHAPES = {
    "0.6B": (151936, 1024, 3072, 28, 16, 8, 128, True),
    "8B": (128256, 4096, 14336, 32, 32, 8, 128, False),
}
# what, batch, tokens of a step, tokens before them, length of the cache
CASES = [
    ("decode, batch 1, context 1024", 1, 1, 1024, 1152),
    ("decode, batch 8, context 1024", 8, 1, 1024, 1152),
    ("decode, batch 64, context 1024", 64, 1, 1024, 1152),
    ("prefill of 2048 tokens", 1, 2048, 0, 2048),
]
DEVICE, DTYPE = "cuda", torch.bfloat16


def norm(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def weight(*size):
    return torch.nn.Parameter(torch.randn(*size, device=DEVICE, dtype=DTYPE) * 0.02, requires_grad=False)


def ones(size):
    return torch.nn.Parameter(torch.ones(size, device=DEVICE, dtype=DTYPE), requires_grad=False)


class Layer(torch.nn.Module):
    def __init__(self, shape, batch, length):
        super().__init__()
        _, hidden, inner, _, self.heads, self.kv_heads, self.dim, self.head_norms = shape
        self.qkv = weight((self.heads + 2 * self.kv_heads) * self.dim, hidden)
        self.out = weight(hidden, self.heads * self.dim)
        self.gate_up = weight(2 * inner, hidden)
        self.down = weight(hidden, inner)
        self.norms = torch.nn.ParameterList([ones(hidden), ones(hidden), ones(self.dim), ones(self.dim)])
        for name in ("k", "v"):
            cache = torch.randn(batch, self.kv_heads, length, self.dim, device=DEVICE, dtype=DTYPE)
            self.register_buffer(name, cache)

    def rotate(self, x, cos, sin):
        low, high = x.chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

    def forward(self, x, positions, before, cos, sin):
        batch, count, _ = x.shape
        sizes = [self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim]
        q, k, v = F.linear(norm(x, self.norms[0]), self.qkv).split(sizes, dim=-1)
        q, k, v = (t.view(batch, count, -1, self.dim).transpose(1, 2) for t in (q, k, v))
        if self.head_norms:
            q, k = norm(q, self.norms[2]), norm(k, self.norms[3])
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        self.k.index_copy_(2, positions, k)
        self.v.index_copy_(2, positions, v)
        if count == 1:
            # No mask: with one, a grouped query falls to the slow kernel. The graph is good for this context alone.
            k, v = self.k[:, :, : before + 1], self.v[:, :, : before + 1]
        a = F.scaled_dot_product_attention(q, k, v, is_causal=count > 1, enable_gqa=True)
        x = x + F.linear(a.transpose(1, 2).reshape(batch, count, -1), self.out)
        gate, up = F.linear(norm(x, self.norms[1]), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Model(torch.nn.Module):
    def __init__(self, shape, batch, before, length):
        super().__init__()
        vocab, hidden, _, layers, _, _, dim, _ = shape
        self.before = before
        self.embed, self.head, self.norm = weight(vocab, hidden), weight(vocab, hidden), ones(hidden)
        self.layers = torch.nn.ModuleList(Layer(shape, batch, length) for _ in range(layers))
        angles = torch.arange(length, device=DEVICE)[:, None] / 10000 ** (torch.arange(0, dim, 2, device=DEVICE) / dim)
        self.register_buffer("cos", angles.cos().to(DTYPE))
        self.register_buffer("sin", angles.sin().to(DTYPE))

    def forward(self, tokens, positions):
        x = self.embed[tokens]
        cos, sin = self.cos[positions], self.sin[positions]
        for layer in self.layers:
            x = layer(x, positions, self.before, cos, sin)
        return F.linear(norm(x[:, -1:], self.norm), self.head).argmax(dim=-1)


def median_seconds(run, times):
    seconds = []
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@torch.no_grad()
def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--quick", action="store_true", help="the small shape alone")
    quick = flags.parse_args().quick
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    for name, shape in SHAPES.items():
        if quick and name != "0.6B":
            continue
        for what, batch, count, before, length in CASES:
            model = Model(shape, batch, before, length)
            tokens = torch.zeros((batch, count), device=DEVICE, dtype=torch.long)
            positions = torch.arange(before, before + count, device=DEVICE)
            # A capture must not be the first run, and must not run on the default stream.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    model(tokens, positions)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                model(tokens, positions)
            for _ in range(5):
                graph.replay()
            seconds = median_seconds(graph.replay, 40 if count == 1 else 10)
            print(f"{name}: {what}, ms\t{seconds * 1e3:.3f}")
            print(f"{name}: {what}, tokens/s\t{batch * count / seconds:.0f}", flush=True)
            del model, graph
            gc.collect()
            torch.cuda.empty_cache()


main()
