"""Trains the demo model of tests/data/demo from nothing and writes it in the published Qwen3.5 file layout.

    python scripts/train_demo_model.py --out tests/data/demo

makes the stories (demo_stories.py), the tokenizer, the weights, eval.txt, loss.csv and metrics.json with fixed seeds.
Environment: Python 3.11 or newer with PyTorch, transformers (one that has Qwen3_5ForCausalLM), tokenizers
and jinja2 from PyPI; no network and no GPU are needed. torch.compile needs a C++ compiler. Training runs on the
CPU and resumes from --checkpoint when that file exists.
"""

import argparse
import json
import math
import random
import struct
import time
from pathlib import Path

import jinja2
import torch
import torch.nn.functional as F
import transformers.models.qwen3_5.modeling_qwen3_5 as qwen
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

import demo_stories

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
ADDED = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False), ("</think>", False)]
VOCAB, BASE = 1024, 1014
END_OF_TEXT, IM_END = BASE, BASE + 2
BREAK = "\n\n"
EVAL_STORIES, EVAL_SEED, TRAIN_SEED, TOKENIZER_SEED = 210, 20001, 10001, 30001

CHAT_TEMPLATE = """\
{%- set ns = namespace(query=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.query = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if ns.query < 0 %}
    {{- raise_exception('No user message found.') }}
{%- endif %}
{%- for message in messages %}
    {%- set text = message.content | trim %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('The system message must come first.') }}
    {%- elif message.role == 'system' or message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\\n' + text + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content | trim %}
        {%- elif '</think>' in text %}
            {%- set reasoning = text.split('</think>')[0].split('<think>')[-1] | trim %}
            {%- set text = text.split('</think>')[-1] | trim %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.query %}
            {{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- text + '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('Unknown message role.') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

TEXT_CONFIG = {
    "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "dtype": "bfloat16",
    "eos_token_id": END_OF_TEXT, "full_attention_interval": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 128,
    "initializer_range": 0.02, "intermediate_size": 512,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_value_head_dim": 64,
    "max_position_embeddings": 8192, "mlp_only_layers": [], "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 0,
    "mtp_use_dedicated_embeddings": False, "num_attention_heads": 8, "num_hidden_layers": 8, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "use_cache": True, "vocab_size": VOCAB, "mamba_ssm_dtype": "float32",
    "rope_parameters": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default",
                        "rope_theta": 100000, "partial_rotary_factor": 0.5},
}
CONFIG = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": TEXT_CONFIG,
          "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0"}
GENERATION = {"bos_token_id": END_OF_TEXT, "do_sample": True, "eos_token_id": [IM_END, END_OF_TEXT],
              "pad_token_id": END_OF_TEXT, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def render(messages, _template=[]):
    """The chat text of a conversation."""
    if not _template:
        _template.append(jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHAT_TEMPLATE))
    return _template[0].render(messages=messages)


def make_tokenizer(path):
    """Trains the byte-level BPE on 4000 stories and 2000 conversations and writes tokenizer.json."""
    rng = random.Random(TOKENIZER_SEED)
    texts = [BREAK.join(demo_stories.story(rng)[0] for _ in range(4)) for _ in range(1000)]
    texts += [m[key] for _ in range(2000) for m in demo_stories.conversation(rng)
              for key in ("content", "reasoning_content") if m.get(key)]
    texts += [f"{role}\n" for role in ("system", "user", "assistant") for _ in range(500)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=BASE, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    assert tokenizer.get_vocab_size() == BASE
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in ADDED])
    tokenizer.save(str(path))


def make_files(out):
    """Writes every file of the model directory that does not depend on training, and eval.txt."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        make_tokenizer(out / "tokenizer.json")
    write_json(out / "config.json", CONFIG)
    write_json(out / "generation_config.json", GENERATION)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_json(out / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False,
        "added_tokens_decoder": {str(BASE + i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False,
                                                 "single_word": False, "special": special}
                                 for i, (text, special) in enumerate(ADDED)},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 8192, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None})
    rng = random.Random(EVAL_SEED)
    stories = [demo_stories.story(rng) for _ in range(EVAL_STORIES)]
    (out / "eval.txt").write_text(BREAK.join(s[0] for s in stories) + "\n", encoding="utf-8")
    return sum(s[1] for s in stories)


def segments(rng):
    """An endless mixture of documents, each closed by <|endoftext|>."""
    while True:
        kind = rng.random()
        if kind < 0.65:
            count = 1 if kind < 0.2 else rng.randint(2, 8)
            yield BREAK.join(demo_stories.story(rng)[0] for _ in range(count)) + "<|endoftext|>"
        else:
            yield render(demo_stories.conversation(rng)) + "<|endoftext|>"


class Rows:
    """Token rows of a wanted length. A row starts at a document or, half of the time, inside one."""

    def __init__(self, tokenizer, seed):
        self.tokenizer, self.rng = tokenizer, random.Random(seed)
        self.source = segments(self.rng)

    def row(self, length):
        ids, skip = [], self.rng.random() < 0.5
        while len(ids) < length + 1:
            new = self.tokenizer.encode(next(self.source)).ids
            if skip:
                new, skip = new[self.rng.randrange(len(new)):], False
            ids += new
        return ids[:length + 1]

    def batch(self, count, length):
        return torch.tensor([self.row(length) for _ in range(count)])


def shifted_conv(x, weight, bias=None, activation=None, **_):
    """The causal depthwise convolution as a sum of shifted products."""
    length, taps = x.shape[-1], weight.shape[-1]
    x = F.pad(x, (taps - 1, 0))
    return F.silu(sum(x[:, :, j:j + length] * weight[:, j, None] for j in range(taps)))


def build_model(seed):
    """The model with its initial weights."""
    torch.manual_seed(seed)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**TEXT_CONFIG, tie_word_embeddings=False)).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("A_log"):
                p.copy_(torch.linspace(0.0, math.log(16.0), p.numel()))
            elif name.endswith("dt_bias"):
                dt = torch.exp(torch.empty_like(p).uniform_(math.log(0.001), math.log(0.1)))
                p.copy_(dt + torch.log(-torch.expm1(-dt)))
            elif name.endswith("conv1d.weight"):
                p.normal_(0.0, 0.2)
                p[:, :, -1] += 0.5
            elif name.endswith("embed_tokens.weight"):
                p.normal_(0.0, 0.5)
            elif name.endswith("lm_head.weight"):
                p.normal_(0.0, 0.02)
            elif p.dim() == 2:
                out = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
                p.normal_(0.0, (0.2 if out else 0.7) / math.sqrt(p.shape[1]))
    return model


def optimizers(model, rate):
    """Muon for the large matrices, AdamW for the rest."""
    large, small, plain = [], [], []
    for name, p in model.named_parameters():
        if p.dim() == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight", "in_proj_a.weight",
                                               "in_proj_b.weight")):
            large.append(p)
        else:
            (small if p.dim() == 2 else plain).append(p)
    muon = torch.optim.Muon(large, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([{"params": small, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
                             lr=rate, betas=(0.9, 0.95), eps=1e-10)
    return [muon, adam]


def rate_at(step, steps, warmup=60):
    """Warm-up, then a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fast_kernels(chunk):
    """Replaces the reference kernels by mathematically identical ones; returns a function that restores them."""
    saved = qwen.torch_chunk_gated_delta_rule, qwen.causal_conv1d_fn
    qwen.torch_chunk_gated_delta_rule = lambda *a, **k: saved[0](*a, **{**k, "chunk_size": chunk})
    qwen.causal_conv1d_fn = shifted_conv

    def restore():
        qwen.torch_chunk_gated_delta_rule, qwen.causal_conv1d_fn = saved
    return restore


def train(args, out):
    """Trains for args.steps steps; the last args.long_steps of them use rows of args.long_length tokens."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = build_model(args.seed)
    opts = optimizers(model, args.rate)
    start, log = 0, []
    checkpoint = Path(args.checkpoint)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"]):
            opt.load_state_dict(saved)
        start, log = state["step"], state["log"]
    restore = fast_kernels(32)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)
    model.train()
    clock, seen = time.time(), 0
    for step in range(start, args.steps):
        long = step >= args.steps - args.long_steps
        length = args.long_length if long else args.length
        batch = Rows(tokenizer, TRAIN_SEED * 1000003 + step).batch(args.tokens // length, length)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.rate * rate_at(step, args.steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        seen += batch.shape[0] * length
        log.append((step, (step + 1) * args.tokens, round(loss.item(), 4)))
        if step % 20 == 0 or step + 1 == args.steps:
            speed = seen / (time.time() - clock)
            print(f"step {step} loss {loss.item():.4f} norm {norm:.2f} tok/s {speed:.0f}", flush=True)
            clock, seen = time.time(), 0
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            torch.save({"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "step": step + 1,
                        "log": log}, checkpoint)
    restore()
    with open(out / "loss.csv", "w", encoding="utf-8") as file:
        file.write("step,tokens,loss\n")
        for i in range(0, len(log), 50):
            part = log[i:i + 50]
            file.write(f"{part[-1][0] + 1},{part[-1][1]},{sum(p[2] for p in part) / len(part):.4f}\n")
    fresh = build_model(args.seed)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def published(model):
    """The tensors under their published names and types."""
    tensors = {}
    for name, p in model.state_dict().items():
        name = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
        wide = name.endswith(("A_log", "linear_attn.norm.weight"))
        tensors[name] = p.detach().to(torch.float32 if wide else torch.bfloat16).contiguous()
    return tensors


def write_shard(path, tensors):
    """One safetensors file: F32 tensors first, then BF16, each alphabetical."""
    header, blobs, offset = {}, [], 0
    for name in sorted(tensors, key=lambda n: (tensors[n].dtype != torch.float32, n)):
        t = tensors[name]
        wide = t.dtype == torch.float32
        blob = t.numpy().tobytes() if wide else t.view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "F32" if wide else "BF16", "shape": list(t.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def export(model, out):
    """Writes two shards and the index. As in the published files a layer's tensors lie in both shards."""
    tensors = published(model)
    first = {n for n in tensors if n.endswith(("lm_head.weight", "embed_tokens.weight", "in_proj_qkv.weight",
                                               "mlp.down_proj.weight", "self_attn.q_proj.weight"))}
    names, total = {}, 0
    for number, part in enumerate((first, set(tensors) - first), start=1):
        name = f"model.safetensors-{number:05d}-of-00002.safetensors"
        write_shard(out / name, {n: tensors[n] for n in part})
        names.update({n: name for n in part})
        total += sum(tensors[n].numel() * tensors[n].element_size() for n in part)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total},
                                                      "weight_map": dict(sorted(names.items()))})


def rounded(model):
    """Rounds the weights in place to the stored types."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith(("A_log", "linear_attn.norm.weight")):
                p.copy_(p.to(torch.bfloat16).float())


def large_matrices(model):
    return [(n, p) for n, p in model.named_parameters()
            if p.dim() == 2 and not n.endswith(("in_proj_a.weight", "in_proj_b.weight"))]


def int_absmax(w, bits, group=128):
    """Symmetric absmax integers per group along the inputs, dequantised."""
    top = 2 ** (bits - 1) - 1
    g = w.reshape(w.shape[0], -1, group)
    scale = g.abs().amax(-1, keepdim=True).clamp_min(1e-12) / top
    return ((g / scale).round().clamp(-top, top) * scale).reshape(w.shape)


def hadamard(n):
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / math.sqrt(n)


def gaussian_levels(bits, rounds=400):
    """The Lloyd-Max levels of the unit Gaussian."""
    x = torch.erfinv((torch.arange(1, 200001, dtype=torch.float64) - 0.5) / 100000 - 1) * math.sqrt(2)
    levels = x[torch.linspace(0, len(x) - 1, 2 ** bits + 2).long()[1:-1]]
    for _ in range(rounds):
        cell = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
        levels = torch.zeros_like(levels).index_add_(0, cell, x) / torch.bincount(cell, minlength=len(levels))
    return levels.float()


def polar(w, bits, group=128):
    """Hadamard rotation of each group, Lloyd-Max codes of the normalised coordinates, least-squares scale in BF16."""
    h, levels = hadamard(group), gaussian_levels(bits)
    g = w.reshape(w.shape[0], -1, group) @ h
    rms = g.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    code = levels[torch.bucketize(g / rms, (levels[1:] + levels[:-1]) / 2)]
    scale = ((g * code).sum(-1, keepdim=True) / code.pow(2).sum(-1, keepdim=True)).to(torch.bfloat16).float()
    return ((code * scale) @ h).reshape(w.shape)


@torch.no_grad()
def evaluate(model, ids, window):
    """Mean nats per token over windows without overlap; a window's first token is not predicted."""
    total, count = 0.0, 0
    for begin in range(0, len(ids) - 1, window):
        part = torch.tensor([ids[begin:begin + window]])
        if part.shape[1] < 2:
            continue
        logits = model(input_ids=part, use_cache=False).logits.float()
        total += F.cross_entropy(logits[0, :-1], part[0, 1:], reduction="sum").item()
        count += part.shape[1] - 1
    return total / count


def measure(model, out, floor_nats):
    """Perplexities of the held-out text with the unchanged transformers classes in FP32."""
    ids = Tokenizer.from_file(str(out / "tokenizer.json")).encode((out / "eval.txt").read_text(encoding="utf-8")).ids
    result = {"eval_tokens": len(ids), "eval_bytes": (out / "eval.txt").stat().st_size,
              "floor_nats_per_token": floor_nats / len(ids), "floor_perplexity": math.exp(floor_nats / len(ids))}
    keep = {n: p.detach().clone() for n, p in model.named_parameters()}
    result["fp32_512"] = math.exp(evaluate(model, ids, 512))
    rounded(model)
    base = {n: p.detach().clone() for n, p in large_matrices(model)}
    result["bf16_weights_512"] = math.exp(evaluate(model, ids, 512))
    result["bf16_weights_2048"] = math.exp(evaluate(model, ids, 2048))
    for name, quantise in [("int4_g128", lambda w: int_absmax(w, 4)), ("polar5", lambda w: polar(w, 5)),
                           ("polar4", lambda w: polar(w, 4)), ("polar3", lambda w: polar(w, 3))]:
        with torch.no_grad():
            for n, p in large_matrices(model):
                p.copy_(quantise(base[n]))
        result[name + "_512"] = math.exp(evaluate(model, ids, 512))
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(keep[n])
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--checkpoint", default="demo_checkpoint.pt", help="state to resume from and to save")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--long-steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--long-length", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--export-only", action="store_true", help="write and measure the checkpoint as it is")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    floor = make_files(out)
    if args.export_only:
        model = build_model(args.seed)
        if Path(args.checkpoint).exists():
            model.load_state_dict(torch.load(args.checkpoint, weights_only=False)["model"])
        model.eval()
    else:
        model = train(args, out)
    export(model, out)
    result = measure(model, out, floor)
    write_json(out / "metrics.json", result)
    print(json.dumps(result, indent=4))


if __name__ == "__main__":
    main()
