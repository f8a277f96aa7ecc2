#!/usr/bin/env python3
"""Writes the fixtures of tests/store: published PolarQuant checkpoints F1 and F2 and the codes of the published encoder.

Independent of the C++ code: NumPy only, straight from the description of the method. Usage: make_store_goldens.py tests/data
Writes tests/data/polar_f1/, tests/data/polar_f2/ and tests/data/encoder/.
"""
import json
import os
import struct
import sys

import numpy as np

BLOCK = 128
F16_TIE_MARGIN = 0.02  # of an ulp, so that fp32 and fp64 norms round to the same fp16


def hadamard():
    h = np.ones((1, 1))
    while h.shape[0] < BLOCK:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(BLOCK)


H = hadamard()


def erf(x):
    from math import erf as scalar
    return np.array([scalar(float(v)) for v in np.ravel(x)]).reshape(np.shape(x))


def table(bits, variant):
    """100 Lloyd iterations from linspace(-4, 4). Variant A: float64, outer boundaries infinite; B: float32, they stay at +-4."""
    kind = np.float64 if variant == "A" else np.float32
    n = 2**bits
    bounds = np.linspace(-4, 4, n + 1).astype(kind)
    if variant == "A":
        bounds[0], bounds[-1] = -np.inf, np.inf
    for _ in range(100):
        pdf = (np.exp(-0.5 * bounds * bounds) / np.sqrt(2 * np.pi)).astype(kind)
        cdf = (0.5 * (1 + erf(bounds / np.sqrt(2)))).astype(kind)
        centroids = (pdf[:-1] - pdf[1:]) / (cdf[1:] - cdf[:-1])
        bounds[1:-1] = (centroids[:-1] + centroids[1:]) / 2
    return centroids.astype(np.float32)


def encode_block(w, centroids):
    """Codes, norm (float64), and the least distance of a coordinate to a decision boundary."""
    norm = max(np.sqrt(np.sum(w.astype(np.float64) ** 2)), 1e-10)
    z = (w / norm) @ H * np.sqrt(BLOCK)
    c = centroids.astype(np.float64)
    codes = np.argmin(np.abs(z[:, None] - c[None, :]), axis=1).astype(np.uint8)
    middles = (c[1:] + c[:-1]) / 2
    return codes, norm, np.min(np.abs(z[:, None] - middles[None, :]))


def far_from_tie(norm):
    low = np.float16(norm)
    step = float(np.spacing(low))
    return abs(abs(norm - float(low)) / step - 0.5) > F16_TIE_MARGIN


def safe_block(rng, draw, centroids, margin):
    while True:
        w = draw(rng).astype(np.float32)
        codes, norm, distance = encode_block(w, centroids)
        if distance > margin and far_from_tie(norm):
            return w, codes, np.float16(norm)


def matrix(rng, rows, cols, centroids, margin, scale):
    """A matrix whose every coordinate is far enough from a boundary that fp32 and fp64 agree on the codes."""
    draws = [lambda r: r.normal(size=BLOCK) * scale, lambda r: r.standard_t(4, size=BLOCK) * scale,
             lambda r: r.laplace(size=BLOCK) * scale * 0.1]
    w = np.zeros((rows, cols), np.float32)
    codes = np.zeros((rows, cols), np.uint8)
    norms = np.zeros((rows, cols // BLOCK), np.float16)
    for row in range(rows):
        for block in range(cols // BLOCK):
            at = slice(block * BLOCK, (block + 1) * BLOCK)
            w[row, at], codes[row, at], norms[row, block] = safe_block(rng, draws[(row + block) % 3], centroids, margin)
    return w, codes, norms


def decode(codes, norms, centroids):
    rows, cols = codes.shape
    blocks = centroids.astype(np.float64)[codes].reshape(rows, cols // BLOCK, BLOCK) / np.sqrt(BLOCK)
    return (blocks @ H * norms.astype(np.float64)[:, :, None]).reshape(rows, cols)


def bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, tensors):
    """tensors: name -> (dtype name, array)."""
    header, at, blobs = {}, 0, []
    for name, (dtype, array) in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def pack_five(codes):
    """Eight codes to a 40-bit little-endian integer, code k at bits 5k."""
    rows, cols = codes.shape
    out = np.zeros((rows, cols * 5 // 8), np.uint8)
    for row in range(rows):
        for group in range(cols // 8):
            value = sum(int(codes[row, group * 8 + k]) << (5 * k) for k in range(8))
            out[row, group * 5:group * 5 + 5] = list(value.to_bytes(5, "little"))
    return out


def pack_nibbles(codes):
    """Byte i of a 64-byte block record: code i in the low nibble, code 64 + i in the high one."""
    blocks = codes.reshape(codes.shape[0], -1, 2, BLOCK // 2)
    return (blocks[:, :, 0] | blocks[:, :, 1] << 4).reshape(codes.shape[0], -1)


# name, rows, inputs, bits in F2; the names and shapes stand again in tests/store/polar_checkpoint_test.cpp
MATRICES = [
    ("embed_tokens", 16, 128, 5),
    ("layers.0.linear_attn.in_proj_qkv", 12, 128, 5),
    ("layers.0.linear_attn.in_proj_a", 2, 128, 5),
    ("layers.0.mlp.gate_proj", 8, 128, 3),
    ("layers.0.mlp.up_proj", 8, 128, 4),
    ("layers.0.mlp.down_proj", 4, 512, 6),
    ("lm_head", 16, 128, 5),
]
VECTORS = {"layers.0.input_layernorm.weight": 128, "layers.0.linear_attn.A_log": 2, "norm.weight": 128}


def published_checkpoint(directory, rng, second):
    """F1 when not `second`, else F2 with multimodal names and tensors to skip."""
    os.makedirs(directory, exist_ok=True)
    trunk = "model.language_model." if second else "model."
    tensors, layers, expected = {}, {}, {}
    for name, rows, cols, bits_f2 in MATRICES:
        bits = bits_f2 if second else 5
        full = name if name == "lm_head" else trunk + name
        centroids = table(bits, "A")
        _, codes, norms = matrix(rng, rows, cols, centroids, 0, 0.02)
        if not second:
            tensors[full + ".codes"] = ("I8", codes.astype(np.int8))
            tensors[full + ".ct"] = ("F32", centroids)
        else:
            packed = pack_five(codes) if bits == 5 else pack_nibbles(codes) if bits <= 4 else codes.astype(np.int8)
            tensors[full + ".codes"] = ("I8" if bits > 5 else "U8", packed)
            tensors[full + ".ct_scaled"] = ("F32", (centroids.astype(np.float64) / np.sqrt(BLOCK)).astype(np.float32))
        tensors[full + ".norms"] = ("F16", norms)
        padded = "in_features_padded" if second else "in_f_padded"
        layers[full] = {"in_features": cols, "out_features": rows, padded: cols, "n_blocks": cols // BLOCK, "bits": bits,
                        "block_size": BLOCK}
        expected[name + ".codes"] = ("U8", codes)
        expected[name + ".norms"] = ("F16", norms)
        expected[name + ".table"] = ("F32", centroids)
        expected[name + ".decoded"] = ("F32", decode(codes, norms, centroids).astype(np.float32))
    for name, length in VECTORS.items():
        values = rng.normal(size=length).astype(np.float32) * 0.1
        tensors[trunk + name] = ("F16", values.astype(np.float16)) if second else ("BF16", bf16(values))
        stored = values.astype(np.float16).astype(np.float32) if second else (bf16(values).astype(np.uint32) << 16).view(np.float32)
        expected[name] = ("F32", stored)
    if second:
        tensors["model.visual.merger.norm.weight"] = ("F16", np.zeros(4, np.float16))
        tensors["mtp.norm.weight"] = ("F16", np.zeros(4, np.float16))
        tensors["mtp.pre_fc_norm_hidden.weight"] = ("F16", np.zeros(4, np.float16))
    file = "model-00001-of-00001.safetensors" if second else "model-00000-of-00001.safetensors"
    write_safetensors(f"{directory}/{file}", tensors)
    with open(f"{directory}/model.safetensors.index.json", "w") as out:
        json.dump({"metadata": {}, "weight_map": {name: file for name in tensors}}, out, indent=1)
    config = {"format": "polar_engine_v5", "block_size": BLOCK, "layers": layers}
    if not second:
        config["bits"] = 5
    with open(f"{directory}/polar_config.json", "w") as out:
        json.dump(config, out, indent=1)
    with open(f"{directory}/config.json", "w") as out:
        json.dump({"model_type": "qwen3_5_text"}, out)
    write_safetensors(f"{directory}/expected.bin", expected)


def encoder_goldens(directory, rng):
    os.makedirs(directory, exist_ok=True)
    tensors = {}
    # B is iterated in fp32; beyond 6 bits the noise of that moves codes, and nobody published such a table.
    for variant, widest in (("A", 8), ("B", 6)):
        for bits in range(2, widest + 1):
            centroids = table(bits, variant)
            # An fp32 coordinate is off by about 1e-6; the closest centroids of 8 bits are 0.02 apart.
            w, codes, norms = matrix(rng, 3, 256, centroids, 5e-5, 0.02)
            key = f"{variant}{bits}"
            tensors[key + ".w"] = ("F32", w)
            tensors[key + ".codes"] = ("U8", codes)
            tensors[key + ".norms"] = ("F16", norms)
            tensors[key + ".table"] = ("F32", centroids)
    write_safetensors(f"{directory}/published.safetensors", tensors)


def main():
    root = sys.argv[1]
    rng = np.random.default_rng(20260329)
    published_checkpoint(f"{root}/polar_f1", rng, False)
    published_checkpoint(f"{root}/polar_f2", rng, True)
    encoder_goldens(f"{root}/encoder", rng)


if __name__ == "__main__":
    main()
