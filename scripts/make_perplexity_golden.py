#!/usr/bin/env python3
"""Perplexity of a model by an independent implementation: Hugging Face transformers in fp32.

    make_perplexity_golden.py MODEL TEXT OUT.json [--window 512] [--windows 8]

Writes the mean NLL of the first windows of the gptq-2048 protocol (no overlap, all shifted tokens scored), the hash of the token ids and
of the weights it was made from. tests/app/ppl_test.cpp holds pq-ppl to it. Needs torch, transformers, tokenizers and numpy.
"""

import argparse
import hashlib
import json
import pathlib

import numpy
import torch
import transformers


def weights_sha256(directory):
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(arguments.model)
    text_config = getattr(config, "text_config", config)
    text_config.dtype = "float32"
    model = transformers.Qwen3_5ForCausalLM.from_pretrained(arguments.model, config=text_config, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(pathlib.Path(arguments.model) / "tokenizer.json"))
    text = pathlib.Path(arguments.text).read_bytes().decode("utf-8")
    ids = tokenizer.encode(text, add_special_tokens=False)

    nll = []
    with torch.no_grad():
        for window in range(arguments.windows):
            part = torch.tensor([ids[window * arguments.window:(window + 1) * arguments.window]])
            assert part.shape[1] == arguments.window, "the text is too short"
            logits = model(part).logits[0, :-1].double()
            picked = torch.log_softmax(logits, dim=-1).gather(1, part[0, 1:, None])[:, 0]
            nll.extend((-picked).tolist())
    mean = float(numpy.mean(nll))
    result = {
        "window": arguments.window,
        "windows": arguments.windows,
        "scored_tokens": len(nll),
        "mean_nll": mean,
        "perplexity": float(numpy.exp(mean)),
        "text_tokens": len(ids),
        "tokens_sha256": hashlib.sha256(numpy.array(ids, dtype="<i4").tobytes()).hexdigest(),
        "weights_sha256": weights_sha256(arguments.model),
        "transformers": transformers.__version__,
    }
    pathlib.Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
