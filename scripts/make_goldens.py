"""Writes the golden logits of tests/data/golden with an independent implementation of the model: Hugging Face transformers, class
Qwen3_5ForCausalLM, in fp32 on the CPU, eager attention, pure torch delta rule, on the weights as they stand in the files.

    python scripts/make_goldens.py tiny     three random tiny models (golden_models.py) and their logits
    python scripts/make_goldens.py demo     logits and perplexity of the demo model, tests/data/golden/demo.safetensors

Every golden holds `tokens` I32 [T], `positions` I32 [P] and `logits` F32 [P, V]: the logits at the listed positions after a
prefill of metadata["prefill"] tokens and one decode step for each token after it. The script stops when a weight could be lost
without the logits showing it, or when transformers disagrees with itself. Needs torch, transformers, tokenizers, safetensors.
"""

import argparse
import hashlib
import math
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("USE_HUB_KERNELS", "0")

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

import golden_models

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
DECODE_STEPS = 32
# A weight class must move some logit by this much: 250 times the tolerance of the tests.
LOST_WEIGHT = 0.05
# Chunked and recurrent form of transformers, fp32: rounding only.
SELF_TOLERANCE = 5e-5
DEMO_PREFILL, WINDOWS, WINDOW = 96, 8, 512


def load(directory):
    """The model of a directory, in fp32."""
    text, state = golden_models.read_model(directory)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**text, attn_implementation="eager")).float().eval()
    model.load_state_dict(state, strict=True)
    return model


@torch.no_grad()
def run(model, tokens, prefill):
    """Logits [T, V] of a prefill and single-token steps, which take the recurrent path."""
    out = model(input_ids=tokens[None, :prefill], use_cache=True)
    rows = [out.logits[0]]
    for i in range(prefill, len(tokens)):
        out = model(input_ids=tokens[None, i:i + 1], past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0])
    return torch.cat(rows)


@torch.no_grad()
def whole(model, tokens):
    """Logits [T, V] of one pass without a cache, which takes the chunked path throughout."""
    return model(input_ids=tokens[None], use_cache=False).logits[0]


@torch.no_grad()
def check_sensitivity(model, tokens, logits):
    """Zeroes every tensor in turn and asks that the logits notice. Returns (least change, name)."""
    least = (math.inf, "")
    for name, weight in model.named_parameters():
        kept = weight.clone()
        weight.zero_()
        least = min(least, ((whole(model, tokens) - logits).abs().max().item(), name))
        weight.copy_(kept)
    assert least[0] > LOST_WEIGHT, f"zeroing {least[1]} moves no logit by more than {least[0]:.3g}"
    return least


@torch.no_grad()
def gate_ranges(model, tokens):
    """Quantiles 0, 0.5, 1 of the per-token decays and of beta over all delta layers."""
    decays, betas = [], []
    handles = []
    for layer in model.model.layers:
        if layer.block_type != golden_models.DELTA:
            continue
        d = layer.linear_attn
        handles.append(d.in_proj_a.register_forward_hook(
            lambda _, __, a, d=d: decays.append((-d.A_log.exp() * F.softplus(a + d.dt_bias)).exp().flatten())))
        handles.append(d.in_proj_b.register_forward_hook(lambda _, __, b: betas.append(b.sigmoid().flatten())))
    whole(model, tokens)
    for handle in handles:
        handle.remove()
    q = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0])
    return torch.cat(decays).quantile(q), torch.cat(betas).quantile(q)


def write(path, tokens, positions, logits, prefill, more=None, metadata=None):
    tensors = {"tokens": tokens.to(torch.int32), "positions": positions.to(torch.int32),
               "logits": logits[positions].contiguous(), **(more or {})}
    save_file(tensors, path, metadata={"prefill": str(prefill), **(metadata or {})})


def weights_digest(directory):
    """SHA-256 over the shards in name order: tells a golden of other weights from a wrong forward pass."""
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(directory.glob("model*.safetensors")))).hexdigest()


def text(values):
    return " ".join(f"{v:.4f}" for v in values.tolist())


def make_tiny():
    for g in golden_models.MODELS:
        directory = DATA / "golden" / g.name
        golden_models.write_model(g, directory)
        model = load(directory)
        tokens = torch.randint(g.vocab, (g.prefill + DECODE_STEPS,), generator=torch.Generator().manual_seed(g.seed + 2))
        logits = run(model, tokens, g.prefill)
        chunked = whole(model, tokens)
        difference = (logits - chunked).abs().max().item()
        assert difference < SELF_TOLERANCE, difference
        least = check_sensitivity(model, tokens, chunked)
        decay, beta = gate_ranges(model, tokens)
        assert decay[0] < 0.4 and decay[-1] > 0.99, decay
        write(directory / "golden.safetensors", tokens, torch.arange(len(tokens)), logits, g.prefill)
        size = sum(file.stat().st_size for file in directory.iterdir())
        print(f"{g.name}: {size / 1000:.0f} kB, logits std {logits.std():.2f} max {logits.abs().max():.1f}, chunked - recurrent "
              f"{difference:.1e}, least visible tensor {least[1]} {least[0]:.3f}, decay {text(decay)}, beta {text(beta)}")


@torch.no_grad()
def make_demo():
    from tokenizers import Tokenizer
    directory = DATA / "demo"
    model = load(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode((directory / "eval.txt").read_text(encoding="utf-8")).ids)
    tokens = ids[:DEMO_PREFILL + DECODE_STEPS]
    logits = run(model, tokens, DEMO_PREFILL)
    difference = (logits - whole(model, tokens)).abs().max().item()
    assert difference < SELF_TOLERANCE, difference
    windows = ids[:WINDOWS * WINDOW].view(WINDOWS, WINDOW)
    nll = torch.cat([F.cross_entropy(whole(model, row)[:-1].double(), row[1:], reduction="none") for row in windows])
    # Every second position keeps the file small; odd ones, so that the last is among them.
    write(DATA / "golden" / "demo.safetensors", tokens, torch.arange(1, len(tokens), 2), logits, DEMO_PREFILL,
          more={"windows": windows.to(torch.int32).contiguous()},
          metadata={"windows_nll": f"{nll.mean().item():.9f}", "windows_perplexity": f"{nll.mean().exp().item():.9f}",
                    "windows_scored": str(nll.numel()), "weights_sha256": weights_digest(directory)})
    print(f"demo: logits std {logits.std():.2f}, chunked - recurrent {difference:.1e}, perplexity {nll.mean().exp().item():.6f} "
          f"over {nll.numel()} tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tiny", "demo"])
    what = parser.parse_args().what
    torch.set_num_threads(1)  # sums cut differently by thread differ in the last bits, and the files are committed
    (DATA / "golden").mkdir(parents=True, exist_ok=True)
    make_tiny() if what == "tiny" else make_demo()


if __name__ == "__main__":
    main()
