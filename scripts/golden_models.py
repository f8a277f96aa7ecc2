"""The three random tiny models of tests/data/golden: their geometry, their weights and their files. Running them is left to
make_goldens.py.

Between them they differ in everything that a forward pass can get wrong: value heads per key head (1, 2, 3), tied or separate
head, head dimensions, rotary fraction, kv heads, layer order, spelling of config.json, tensor names, number of shards.
"""

import json
import math
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file

DELTA, FULL = "linear_attention", "full_attention"


@dataclass
class Geometry:
    """One tiny model. Rank counts follow from the rules of src/model/partition.cpp; `ranks` is what the tests expect."""
    name: str
    seed: int
    layer_types: list
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: float
    theta: float
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    vocab: int
    tied: bool
    prefill: int
    shards: int = 1
    interval: int = 0           # written instead of layer_types when not 0
    flat_rope: bool = False     # rope_theta and partial_rotary_factor beside the other keys
    multimodal: bool = False    # text_config nested, names model.language_model.*, vision and mtp tensors to be skipped


MODELS = [
    # 4 ranks; a full-attention layer first; kv heads replicated at 4 ranks; vocabulary that 4 does not divide.
    Geometry("ratio3_full_first", 301, [FULL, DELTA, DELTA, FULL], hidden=64, intermediate=160, heads=4, kv_heads=2, head_dim=48,
             rotary=0.25, theta=1e4, key_heads=4, value_heads=12, key_dim=32, value_dim=16, vocab=250, tied=False, prefill=75,
             shards=2),
    # 2 ranks; every matrix has whole 128-blocks, so that coded formats apply.
    Geometry("ratio2_multimodal", 202, [DELTA, FULL], hidden=128, intermediate=256, heads=4, kv_heads=1, head_dim=64, rotary=0.5,
             theta=1e5, key_heads=4, value_heads=8, key_dim=16, value_dim=32, vocab=256, tied=True, prefill=79, shards=3,
             multimodal=True),
    # 2 ranks; widths that neither 128 nor 16 divides after the cut; odd vocabulary.
    Geometry("ratio1_flat", 103, [DELTA, DELTA, FULL] * 2, hidden=80, intermediate=112, heads=2, kv_heads=1, head_dim=32,
             rotary=0.5, theta=1e7, key_heads=2, value_heads=2, key_dim=32, value_dim=48, vocab=251, tied=False, prefill=72,
             interval=3, flat_rope=True),
]


def text_config(g):
    """The keys of a text configuration as Hugging Face reads them."""
    return {
        "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "dtype": "bfloat16", "eos_token_id": 0,
        "head_dim": g.head_dim, "hidden_act": "silu", "hidden_size": g.hidden, "initializer_range": 0.02,
        "intermediate_size": g.intermediate, "layer_types": g.layer_types, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": g.key_dim, "linear_num_key_heads": g.key_heads, "linear_num_value_heads": g.value_heads,
        "linear_value_head_dim": g.value_dim, "max_position_embeddings": 4096, "model_type": "qwen3_5_text",
        "num_attention_heads": g.heads, "num_hidden_layers": len(g.layer_types), "num_key_value_heads": g.kv_heads,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": g.tied, "use_cache": True, "vocab_size": g.vocab,
        "rope_parameters": {"rope_type": "default", "rope_theta": g.theta, "partial_rotary_factor": g.rotary},
    }


def published_config(g):
    """config.json in this model's spelling."""
    text = text_config(g)
    if g.interval:
        assert g.layer_types == [FULL if (i + 1) % g.interval == 0 else DELTA for i in range(len(g.layer_types))]
        del text["layer_types"]
        text["full_attention_interval"] = g.interval
    if g.flat_rope:
        del text["rope_parameters"]
        text.update(rope_theta=g.theta, partial_rotary_factor=g.rotary)
    if not g.multimodal:
        return {"architectures": ["Qwen3_5ForCausalLM"], **text}
    text["rope_parameters"].update(mrope_interleaved=True, mrope_section=[6, 5, 5])
    text.update(mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False, mamba_ssm_dtype="float32", mlp_only_layers=[])
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "model_type": "qwen3_5", "num_heads": 2,
              "out_hidden_size": g.hidden, "patch_size": 4}
    return {"architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 2, "model_type": "qwen3_5",
            "text_config": text, "tie_word_embeddings": g.tied, "vision_config": vision}


def random_tensors(g):
    """Text tensors by their names in the checkpoint without the trunk prefix, rounded to the dtype they are stored in."""
    rng = torch.Generator().manual_seed(g.seed)

    def normal(*shape, std, mean=0.0):
        return torch.randn(*shape, generator=rng) * std + mean

    def uniform(count, low, high):
        return torch.rand(count, generator=rng) * (high - low) + low

    def matrix(rows, cols, gain=1.0):
        return normal(rows, cols, std=gain / math.sqrt(cols))

    hidden, key_width, value_width = g.hidden, g.key_heads * g.key_dim, g.value_heads * g.value_dim
    width = g.heads * g.head_dim
    # The final norm gives rows of unit scale, so this makes logits of standard deviation near 2.
    t = {"embed_tokens.weight": normal(g.vocab, hidden, std=2 / math.sqrt(hidden) if g.tied else 1.0),
         "norm.weight": normal(hidden, std=0.3)}
    for i, kind in enumerate(g.layer_types):
        p = f"layers.{i}."
        t[p + "input_layernorm.weight"] = normal(hidden, std=0.3)
        t[p + "post_attention_layernorm.weight"] = normal(hidden, std=0.3)
        t[p + "mlp.gate_proj.weight"] = matrix(g.intermediate, hidden, 1.5)
        t[p + "mlp.up_proj.weight"] = matrix(g.intermediate, hidden)
        t[p + "mlp.down_proj.weight"] = matrix(hidden, g.intermediate)
        if kind == FULL:
            a = p + "self_attn."
            t[a + "q_proj.weight"] = matrix(2 * width, hidden, 1.5)
            t[a + "k_proj.weight"] = matrix(g.kv_heads * g.head_dim, hidden)
            t[a + "v_proj.weight"] = matrix(g.kv_heads * g.head_dim, hidden)
            # Mean 0.3 sharpens the scores: attention that is near uniform would hide errors of position.
            t[a + "q_norm.weight"] = normal(g.head_dim, std=0.3, mean=0.3)
            t[a + "k_norm.weight"] = normal(g.head_dim, std=0.3, mean=0.3)
            t[a + "o_proj.weight"] = matrix(hidden, width, 3.0)
        else:
            d = p + "linear_attn."
            t[d + "in_proj_qkv.weight"] = matrix(2 * key_width + value_width, hidden)
            t[d + "in_proj_z.weight"] = matrix(value_width, hidden, 1.5)
            t[d + "in_proj_b.weight"] = matrix(g.value_heads, hidden, 1.5)
            t[d + "in_proj_a.weight"] = matrix(g.value_heads, hidden)
            t[d + "conv1d.weight"] = normal(2 * key_width + value_width, 1, 4, std=0.6)
            # softplus(a + dt_bias) near 0.04 to 0.7 times exp(A_log) of 0.05 to 2: per-token decays from 0.2 to 0.999.
            t[d + "A_log"] = torch.linspace(math.log(0.05), math.log(2.0), g.value_heads) + normal(g.value_heads, std=0.1)
            t[d + "dt_bias"] = uniform(g.value_heads, -3.0, 0.0)
            t[d + "norm.weight"] = normal(g.value_dim, std=0.2, mean=1.0)
            t[d + "out_proj.weight"] = matrix(hidden, value_width, 1.5)
    if not g.tied:
        t["lm_head.weight"] = matrix(g.vocab, hidden, 2.0)
    return {name: value if is_wide(name) else value.to(torch.bfloat16) for name, value in t.items()}


def is_wide(name):
    """Stored as F32; everything else as BF16."""
    return name.endswith(("linear_attn.A_log", "linear_attn.norm.weight"))


def skipped_tensors(g):
    """Vision and multi-token-prediction tensors that a text runtime passes over."""
    rng = torch.Generator().manual_seed(g.seed + 1)
    shapes = {"model.visual.patch_embed.proj.weight": (16, 3, 2, 4, 4), "model.visual.patch_embed.proj.bias": (16,),
              "model.visual.pos_embed.weight": (9, 16), "model.visual.blocks.0.attn.qkv.weight": (48, 16),
              "model.visual.blocks.0.attn.qkv.bias": (48,), "model.visual.merger.linear_fc1.weight": (64, 64),
              "mtp.fc.weight": (16, 32), "mtp.norm.weight": (g.hidden,), "mtp.layers.0.input_layernorm.weight": (g.hidden,),
              "mtp.layers.0.self_attn.k_proj.weight": (16, 16), "mtp.layers.0.mlp.down_proj.weight": (16, 16)}
    return {name: torch.randn(*shape, generator=rng).to(torch.bfloat16) for name, shape in shapes.items()}


def write_model(g, directory):
    """config.json, the shards and, for several, the index. Tensors of one layer lie in different shards, as published."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(published_config(g), indent=4) + "\n", encoding="utf-8")
    trunk = "model.language_model." if g.multimodal else "model."
    tensors = {name if name == "lm_head.weight" else trunk + name: value for name, value in random_tensors(g).items()}
    if g.multimodal:
        tensors.update(skipped_tensors(g))
    if g.shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    stem = "model.safetensors" if g.multimodal else "model"
    files = [f"{stem}-{i + 1:05d}-of-{g.shards:05d}.safetensors" for i in range(g.shards)]
    parts = [{} for _ in files]
    for i, name in enumerate(sorted(tensors)):
        parts[i % g.shards][name] = tensors[name]
    for file, part in zip(files, parts):
        save_file(part, directory / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())},
             "weight_map": {name: file for file, part in zip(files, parts) for name in sorted(part)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=4) + "\n", encoding="utf-8")


def read_model(directory):
    """(config.json as a flat text configuration, fp32 state for Qwen3_5ForCausalLM) of any directory in the published layout."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = {"tie_word_embeddings": config.get("tie_word_embeddings", False), **config.get("text_config", config)}
    state = {}
    for file in sorted(directory.glob("model*.safetensors")):
        for name, value in load_file(file).items():
            if not name.startswith(("model.visual.", "mtp.")):
                state[name.replace("model.language_model.", "model.")] = value.float()
    if text["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return text, state
