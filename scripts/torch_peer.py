"""Decode and prefill of the benched shapes in PyTorch: static cache, torch.compile with CUDA graphs, SDPA. A line a figure.

    python3 scripts/torch_peer.py [--quick]
"""

import argparse
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
LENGTH = 2176
DEVICE, DTYPE = "cuda", torch.bfloat16


def norm(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


class Model(torch.nn.Module):
    def __init__(self, shape, batch):
        super().__init__()
        vocab, hidden, inner, layers, heads, kv_heads, dim, head_norms = shape
        self.heads, self.kv_heads, self.dim, self.head_norms = heads, kv_heads, dim, head_norms

        def weight(*size):
            return torch.nn.Parameter(torch.randn(*size, device=DEVICE, dtype=DTYPE) * 0.02, requires_grad=False)

        self.embed, self.head = weight(vocab, hidden), weight(vocab, hidden)
        self.layers = torch.nn.ParameterList()
        for _ in range(layers):
            self.layers.append(weight((heads + 2 * kv_heads) * dim, hidden))
            self.layers.append(weight(hidden, heads * dim))
            self.layers.append(weight(2 * inner, hidden))
            self.layers.append(weight(hidden, inner))
        self.one = torch.nn.Parameter(torch.ones(hidden, device=DEVICE, dtype=DTYPE), requires_grad=False)
        self.head_one = torch.nn.Parameter(torch.ones(dim, device=DEVICE, dtype=DTYPE), requires_grad=False)
        size = (layers, 2, batch, kv_heads, LENGTH, dim)
        self.register_buffer("cache", torch.zeros(size, device=DEVICE, dtype=DTYPE))
        angles = torch.arange(LENGTH, device=DEVICE)[:, None] / 10000 ** (torch.arange(0, dim, 2, device=DEVICE) / dim)
        self.register_buffer("cos", angles.cos().to(DTYPE))
        self.register_buffer("sin", angles.sin().to(DTYPE))

    def rotate(self, x, positions):
        cos, sin = self.cos[positions], self.sin[positions]
        low, high = x.chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

    def forward(self, tokens, positions):
        batch, count = tokens.shape
        x = self.embed[tokens]
        mask = (torch.arange(LENGTH, device=DEVICE)[None, :] <= positions[:, None])[None, None]
        for layer in range(len(self.layers) // 4):
            qkv, out, gate_up, down = (self.layers[4 * layer + i] for i in range(4))
            sizes = [self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim]
            q, k, v = F.linear(norm(x, self.one), qkv).split(sizes, dim=-1)
            q, k, v = (t.view(batch, count, -1, self.dim).transpose(1, 2) for t in (q, k, v))
            if self.head_norms:
                q, k = norm(q, self.head_one), norm(k, self.head_one)
            q, k = self.rotate(q, positions), self.rotate(k, positions)
            self.cache[layer, 0].index_copy_(2, positions, k)
            self.cache[layer, 1].index_copy_(2, positions, v)
            if count > 1:
                a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            else:
                a = F.scaled_dot_product_attention(
                    q, self.cache[layer, 0], self.cache[layer, 1], attn_mask=mask, enable_gqa=True
                )
            x = x + F.linear(a.transpose(1, 2).reshape(batch, count, -1), out)
            gate, up = F.linear(norm(x, self.one), gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(norm(x[:, -1:], self.one), self.head).argmax(dim=-1)


def median_seconds(run, times):
    seconds = []
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@torch.inference_mode()
def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--quick", action="store_true", help="the small shape alone")
    quick = flags.parse_args().quick
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    for name, shape in SHAPES.items():
        if quick and name != "0.6B":
            continue
        for batch in (1, 8):
            model = Model(shape, batch)
            decode = torch.compile(model, mode="reduce-overhead", fullgraph=True)
            tokens = torch.zeros((batch, 1), device=DEVICE, dtype=torch.long)
            position = torch.tensor([1024], device=DEVICE)
            for _ in range(5):
                tokens = decode(tokens, position).clone()

            def step():
                decode(tokens, position)

            seconds = median_seconds(step, 40)
            print(f"{name}: decode, batch {batch}, context 1024, ms {seconds * 1e3:.3f}, tokens/s {batch / seconds:.0f}")
            if batch == 1:
                prompt = torch.zeros((1, 2048), device=DEVICE, dtype=torch.long)
                positions = torch.arange(2048, device=DEVICE)
                prefill = torch.compile(model, fullgraph=True)
                prefill(prompt, positions)
                seconds = median_seconds(lambda: prefill(prompt, positions), 10)
                print(f"{name}: prefill of 2048 tokens, ms {seconds * 1e3:.2f}, tokens/s {2048 / seconds:.0f}")
            del model, decode
            torch.compiler.reset()
            torch.cuda.empty_cache()


main()
