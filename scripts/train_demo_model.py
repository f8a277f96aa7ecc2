"""Trains the demo model of tests/data/demo from nothing and writes it in the published Qwen3.5 file layout.

    python scripts/train_demo_model.py --out tests/data/demo

makes the stories (demo_stories.py), the tokenizer, the weights, eval.txt and loss.csv with fixed seeds, and
prints the perplexities of eval.txt.
Environment: Python 3.11 or newer with PyTorch, transformers (one that has Qwen3_5ForCausalLM), tokenizers
and jinja2 from PyPI; no network and no GPU are needed. torch.compile needs a C++ compiler. Training runs on the
CPU and resumes from --checkpoint when that file exists.
"""

import argparse
import functools
import json
import math
import random
import struct
import tempfile
import time
from pathlib import Path

import jinja2
import torch
import torch.distributed as dist
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


def delta_rule(query, key, value, g, beta, chunk_size=64, use_qk_l2norm_in_kernel=True, **_):
    """The chunked gated delta rule of a sequence from the zero state, with the unit-triangular system inverted by
    repeated squaring. The sequence length must be a multiple of the chunk size."""
    batch, length, heads, dim = value.shape
    chunks, c = length // chunk_size, chunk_size
    with torch.autocast("cpu", enabled=False):
        query, key = (qwen.l2norm(x.float(), dim=-1, eps=1e-6) for x in (query, key))
        query = query * query.shape[-1] ** -0.5
        shape = (batch, chunks, c, heads)
        total = g.float().view(shape).permute(0, 3, 1, 2).cumsum(-1)
        beta = beta.float().view(shape).permute(0, 3, 1, 2)
        value = value.float().view(*shape, dim).permute(0, 3, 1, 2, 4).contiguous()
        query, key = (x.view(batch, chunks, c, *x.shape[2:]).permute(0, 3, 1, 2, 4).contiguous() for x in (query, key))
        mask = torch.ones(c, c, dtype=torch.bool).triu(1)
        decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(mask, -1e30).exp()
        group = heads // key.shape[1]
        inner = (key @ key.mT).repeat_interleave(group, dim=1)
        reads = (query @ key.mT).repeat_interleave(group, dim=1) * decay
        query, key = (x.repeat_interleave(group, dim=1) for x in (query, key))
        power = -(inner * decay * beta.unsqueeze(-1)).tril(-1)
        inverse = torch.eye(c) + power
        for _ in range(int(math.log2(c)) - 1):
            power = power @ power
            inverse = inverse + inverse @ power
        growth = total.exp().unsqueeze(-1)
        new = inverse @ (value * beta.unsqueeze(-1))
        seen = inverse @ (key * (beta.unsqueeze(-1) * growth))
        query = query * growth
        key = key * (total[..., -1:] - total).exp().unsqueeze(-1)
        carry = growth[..., -1:, :]
        state = torch.zeros(batch, heads, key.shape[-1], dim)
        outputs = []
        for q, k, n, s, r, a in zip(*(x.unbind(2) for x in (query, key, new, seen, reads, carry))):
            n = n - s @ state
            outputs.append(q @ state + r @ n)
            state = state * a + k.mT @ n
        output = torch.stack(outputs, dim=2).permute(0, 2, 3, 1, 4)
    return output.reshape(batch, length, heads, dim), None


def shifted_conv(x, weight, bias=None, activation=None, **_):
    """The causal depthwise convolution as a sum of shifted products."""
    x, taps = x.transpose(1, 2), weight.shape[-1]
    length = x.shape[1]
    x = F.pad(x, (0, 0, taps - 1, 0))
    return F.silu(sum(x[:, j:j + length] * weight[:, j] for j in range(taps))).transpose(1, 2)


def build_model(seed):
    """The model with its initial weights. Queries start equal to keys, the output projections of the mixers as a
    multiple of the transposed value projections and the head as a multiple of the embedding: copying is learnt early."""
    torch.manual_seed(seed)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**TEXT_CONFIG, tie_word_embeddings=False)).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("A_log"):
                p.copy_(torch.linspace(math.log(0.25), math.log(8.0), p.numel()))
            elif name.endswith("dt_bias"):
                dt = torch.exp(torch.empty_like(p).uniform_(math.log(0.001), math.log(0.1)))
                p.copy_(dt + torch.log(-torch.expm1(-dt)))
            elif name.endswith("conv1d.weight"):
                p.normal_(0.0, 0.2)
                p[:, :, -1] += 0.5
            elif name.endswith("embed_tokens.weight"):
                p.normal_(0.0, 0.5)
            elif name.endswith("lm_head.weight"):
                p.copy_(0.04 * model.model.embed_tokens.weight)
            elif p.dim() == 2:
                p.normal_(0.0, (0.2 if name.endswith("down_proj.weight") else 0.7) / math.sqrt(p.shape[1]))
        for layer in model.model.layers:
            if hasattr(layer, "linear_attn"):
                mixer = layer.linear_attn
                rows, width = mixer.in_proj_qkv.weight, mixer.key_dim
                rows[:width] = rows[width:2 * width]
                mixer.conv1d.weight[:width] = mixer.conv1d.weight[width:2 * width]
                mixer.out_proj.weight.copy_(0.2 * rows[2 * width:].T)
            else:
                mixer = layer.self_attn
                value = mixer.v_proj.weight.view(-1, mixer.head_dim, TEXT_CONFIG["hidden_size"])
                value = value.repeat_interleave(mixer.num_key_value_groups, dim=0).flatten(0, 1)
                mixer.o_proj.weight.copy_(0.2 * value.T)
                key = mixer.k_proj.weight.view(-1, mixer.head_dim, TEXT_CONFIG["hidden_size"])
                query = mixer.q_proj.weight.view(-1, 2 * mixer.head_dim, TEXT_CONFIG["hidden_size"])
                query[:, :mixer.head_dim] = key.repeat_interleave(mixer.num_key_value_groups, dim=0)
    return model


def optimizers(model, rate):
    """Muon for the large matrices, AdamW for the rest; each group keeps its own base rate."""
    groups = {"large": [], "embed_tokens": [], "lm_head": [], "in_proj": [], "plain": []}
    for name, p in model.named_parameters():
        key = next((k for k in ("embed_tokens", "lm_head") if k in name), "plain")
        if name.endswith(("in_proj_a.weight", "in_proj_b.weight")):
            key = "in_proj"
        elif p.dim() == 2 and key == "plain":
            key = "large"
        groups[key].append(p)
    muon = torch.optim.Muon([{"params": groups["large"], "base": 2.0 * rate}], lr=rate, weight_decay=0.05,
                            momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([{"params": groups["embed_tokens"], "base": 10.0 * rate},
                              {"params": groups["lm_head"], "base": 1.5 * rate},
                              {"params": groups["in_proj"], "base": 3.0 * rate},
                              {"params": groups["plain"], "base": 3.0 * rate}],
                             lr=rate, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    return [muon, adam]


def rate_at(step, steps, decay, warmup=40):
    """Warm-up, a constant, and a linear decay to 2 % over the last steps."""
    return min(1.0, (step + 1) / warmup, 0.02 + 0.98 * (steps - step) / decay)


def fast_kernels(chunk):
    """Replaces the reference kernels of this process by mathematically identical ones."""
    qwen.torch_chunk_gated_delta_rule = lambda *a, **k: delta_rule(*a, **{**k, "chunk_size": chunk})
    qwen.causal_conv1d_fn = shifted_conv


def average_gradients(model, workers):
    """Replaces each gradient by its mean over the workers."""
    if workers > 1:
        grads = [p.grad for p in model.parameters()]
        flat = torch._utils._flatten_dense_tensors(grads)
        dist.all_reduce(flat)
        for grad, mean in zip(grads, torch._utils._unflatten_dense_tensors(flat / workers, grads)):
            grad.copy_(mean)


def train(rank, args):
    """One worker's part of args.steps steps; the last args.long_steps of them use rows of args.long_length tokens."""
    torch.set_num_threads(args.threads)
    out, checkpoint = Path(args.out), Path(args.checkpoint)
    if args.workers > 1:
        dist.init_process_group("gloo", init_method=args.meeting, rank=rank, world_size=args.workers)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = build_model(args.seed)
    opts = optimizers(model, args.rate)
    start, log = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"]):
            opt.load_state_dict(saved)
        start, log = state["step"], state["log"]
    fast_kernels(32)
    plain = [layer.forward for layer in model.model.layers]
    if args.compile:
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)
    model.train()
    clock = time.time()
    for step in range(start, args.steps):
        long = step >= args.steps - args.long_steps
        if long:
            for layer, forward in zip(model.model.layers, plain):
                layer.forward = forward
        length = args.long_length if long else args.length
        rows = Rows(tokenizer, (TRAIN_SEED * 1000003 + step) * args.workers + rank)
        batch = rows.batch(max(1, args.tokens // (length * args.workers)), length)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group["base"] * rate_at(step, args.steps, args.decay_steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        average_gradients(model, args.workers)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        tokens = (log[-1][1] if log else 0) + batch.shape[0] * length * args.workers
        log.append((step + 1, tokens, round(loss.item(), 4)))
        if rank == 0 and (step + 1) % 20 == 0:
            mean = sum(p[2] for p in log[-20:]) / 20
            print(f"step {step + 1} loss {mean:.4f} norm {norm:.2f} {time.time() - clock:.0f} s", flush=True)
        if rank == 0 and ((step + 1) % args.save_every == 0 or step + 1 == args.steps):
            torch.save({"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "step": step + 1,
                        "log": log}, str(checkpoint) + ".new")
            Path(str(checkpoint) + ".new").replace(checkpoint)


def write_losses(log, path):
    """The mean training loss of each 50 steps."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("step,tokens,loss\n")
        for i in range(0, len(log), 50):
            part = log[i:i + 50]
            file.write(f"{part[-1][0]},{part[-1][1]},{sum(p[2] for p in part) / len(part):.4f}\n")


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


@functools.cache
def gaussian_levels(bits, rounds=100):
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
def evaluate(model, ids, window, batch=8):
    """Mean nats per token over windows without overlap; a window's first token is not predicted."""
    total, count, full = 0.0, 0, len(ids) // window
    parts = list(torch.tensor(ids[:full * window]).view(full, window).split(batch)) if full else []
    if len(ids) % window > 1:
        parts.append(torch.tensor([ids[full * window:]]))
    for part in parts:
        logits = model(input_ids=part, use_cache=False).logits.float()
        total += F.cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        count += part[:, 1:].numel()
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
    print(result, flush=True)
    result["bf16_weights_2048"] = math.exp(evaluate(model, ids, 2048))
    for name, quantise in [("int4_g128", lambda w: int_absmax(w, 4)), ("polar5", lambda w: polar(w, 5)),
                           ("polar4", lambda w: polar(w, 4))]:
        with torch.no_grad():
            for n, p in large_matrices(model):
                p.copy_(quantise(base[n]))
        result[name + "_512"] = math.exp(evaluate(model, ids, 512))
        print(name, result[name + "_512"], flush=True)
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(keep[n])
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--checkpoint", default="demo_checkpoint.pt", help="state to resume from and to save")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--decay-steps", type=int, default=420)
    parser.add_argument("--long-steps", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens per step over all workers")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--long-length", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2, help="processes that share each step")
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--export-only", action="store_true", help="write and measure the checkpoint as it is")
    args = parser.parse_args()
    out = Path(args.out)
    floor = make_files(out)
    if not args.export_only:
        with tempfile.TemporaryDirectory() as folder:
            args.meeting = f"file://{folder}/meeting"
            torch.multiprocessing.spawn(train, args=(args,), nprocs=args.workers)
    torch.set_num_threads(args.threads)
    model = build_model(args.seed)
    if Path(args.checkpoint).exists():
        state = torch.load(args.checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        write_losses(state["log"], out / "loss.csv")
    model.eval()
    export(model, out)
    print(json.dumps(measure(model, out, floor), indent=4))


if __name__ == "__main__":
    main()
