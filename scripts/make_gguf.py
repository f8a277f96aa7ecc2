#!/usr/bin/env python3
"""Writes a GGUF of a Qwen3.5 geometry with random weights, to measure other runtimes on the shapes of `pq-bench --geometry`.

Needs numpy and gguf (both from PyPI). Large matrices are F16 of standard deviation 0.02, everything else F32; the tokenizer holds
one token per vocabulary entry and no text. Sizes: config.json files of the published models, as src/model/geometry.cpp.
"""
import argparse

import gguf
import numpy as np

#           hidden, layers, intermediate, heads, kv heads, key heads, value heads, tied
GEOMETRIES = {
    "qwen3.5-27b": (5120, 64, 17408, 24, 4, 16, 48, False),
    "qwen3.5-9b": (4096, 32, 12288, 16, 4, 16, 32, False),
    "qwen3.5-4b": (2560, 32, 9216, 16, 4, 16, 32, True),
    "qwen3.5-2b": (2048, 24, 6144, 8, 2, 16, 16, True),
    "qwen3.5-0.8b": (1024, 24, 3584, 8, 2, 16, 16, True),
}
HEAD_DIM = 256
ROTARY_DIM = 64
STATE_DIM = 128  # of keys and of values of the delta rule
CONV_TAPS = 4
DEVIATION = 0.02


def tensors(geometry, layers, vocab):
    """(name, shape with the outputs first, kind); kind: matrix, or what the entries of a vector are."""
    hidden, _, intermediate, heads, kv_heads, key_heads, value_heads, tied = geometry
    keys, values = key_heads * STATE_DIM, value_heads * STATE_DIM
    yield "token_embd.weight", (vocab, hidden), "matrix"
    for layer in range(layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (hidden,), "one"
        if layer % 4 == 3:
            yield block + "attn_q.weight", (2 * heads * HEAD_DIM, hidden), "matrix"
            yield block + "attn_k.weight", (kv_heads * HEAD_DIM, hidden), "matrix"
            yield block + "attn_v.weight", (kv_heads * HEAD_DIM, hidden), "matrix"
            yield block + "attn_q_norm.weight", (HEAD_DIM,), "one"
            yield block + "attn_k_norm.weight", (HEAD_DIM,), "one"
            yield block + "attn_output.weight", (hidden, heads * HEAD_DIM), "matrix"
        else:
            yield block + "attn_qkv.weight", (2 * keys + values, hidden), "matrix"
            yield block + "attn_gate.weight", (values, hidden), "matrix"
            yield block + "ssm_beta.weight", (value_heads, hidden), "matrix"
            yield block + "ssm_alpha.weight", (value_heads, hidden), "matrix"
            yield block + "ssm_conv1d.weight", (2 * keys + values, CONV_TAPS), "small"
            yield block + "ssm_dt.bias", (value_heads,), "small"
            yield block + "ssm_a", (value_heads,), "decay"
            yield block + "ssm_norm.weight", (STATE_DIM,), "one"
            yield block + "ssm_out.weight", (hidden, values), "matrix"
        yield block + "post_attention_norm.weight", (hidden,), "one"
        yield block + "ffn_gate.weight", (intermediate, hidden), "matrix"
        yield block + "ffn_up.weight", (intermediate, hidden), "matrix"
        yield block + "ffn_down.weight", (hidden, intermediate), "matrix"
    yield "output_norm.weight", (hidden,), "one"
    if not tied:
        yield "output.weight", (vocab, hidden), "matrix"


def values_of(shape, kind, rng):
    if kind == "matrix":
        # Tensors that are quantised need no more than a million different values; drawing each would take minutes.
        pool = (DEVIATION * rng.standard_normal(1 << 20, dtype=np.float32)).astype(np.float16)
        rows, cols = shape
        starts = rng.integers(0, len(pool) - cols, rows)
        return np.stack([pool[start : start + cols] for start in starts])
    if kind == "one":
        return np.ones(shape, np.float32)
    if kind == "decay":
        return -rng.uniform(1, 16, shape).astype(np.float32)
    return (DEVIATION * rng.standard_normal(shape)).astype(np.float32)


def add_metadata(writer, geometry, layers, vocab):
    hidden, _, intermediate, heads, kv_heads, key_heads, value_heads, _ = geometry
    writer.add_name("random weights")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(layers)
    writer.add_context_length(262144)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e7)
    writer.add_rope_dimension_count(ROTARY_DIM)
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    writer.add_ssm_conv_kernel(CONV_TAPS)
    writer.add_ssm_state_size(STATE_DIM)
    writer.add_ssm_group_count(key_heads)
    writer.add_ssm_time_step_rank(value_heads)
    writer.add_ssm_inner_size(value_heads * STATE_DIM)
    writer.add_uint32("qwen35.full_attention_interval", 4)
    writer.add_vocab_size(vocab)
    # A byte-level vocabulary: the printable stand-ins of the 256 bytes, then words that no text contains.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (256 + i for i in range(256 - len(printable)))
    tokens = [chr(b if b in printable else next(others)) for b in range(256)]
    tokens += [f"<unused{i}>" for i in range(vocab - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab)
    writer.add_token_merges(["! !"])
    writer.add_eos_token_id(vocab - 1)
    writer.add_add_bos_token(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="qwen3.5-27b")
    parser.add_argument("--layers", type=int, help="instead of the published number")
    parser.add_argument("--vocab", type=int, default=248320)
    args = parser.parse_args()
    geometry = GEOMETRIES[args.geometry]
    layers = args.layers or geometry[1]
    if args.vocab < 512:
        parser.error("--vocab must be at least 512, to hold the tokens of the bytes")

    writer = gguf.GGUFWriter(args.out, "qwen35")
    add_metadata(writer, geometry, layers, args.vocab)
    for name, shape, kind in tensors(geometry, layers, args.vocab):
        dtype = np.dtype(np.float16 if kind == "matrix" else np.float32)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(1)
    for _, shape, kind in tensors(geometry, layers, args.vocab):
        writer.write_tensor_data(values_of(shape, kind, rng))
    writer.close()


if __name__ == "__main__":
    main()
