#!/usr/bin/env python3
"""Writes tests/data/chat/goldens.json: what Jinja makes of random chats with the published Qwen3.5 template.

TEMPLATE is the chat_template.jinja of Qwen3.5-27B. That of the small models differs only in the default of thinking and is
derived from it; both are checked by digest. Chats the template refuses are kept without a text. Tools are left out.
Needs the Python package jinja2. The same arguments give the same file.
"""

import argparse
import hashlib
import json
import random
import sys
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

LARGE_SHA256 = "a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715"
SMALL_SHA256 = "273d8e0e683b885071fb17e08d71e5f2a5ddfb5309756181681de4f5a1822d80"

OFF_WHEN_FALSE = r"""enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- else %}
        {{- '<think>\n' }}"""
ON_WHEN_TRUE = r"""enable_thinking is true %}
        {{- '<think>\n' }}
    {%- else %}
        {{- '<think>\n\n</think>\n\n' }}"""

FRAGMENTS = ["Hi", "2+2?", "4", "caf\u00e9", "\u4f60\u597d", "it's", "<think>", "</think>", "<think>", "</think>", "\n", "\n\n", " ", "  ",
             "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", "\x1c", "\x85", "<|im_end|>", "<|im_start|>", ".", "!",
             "<tool_response>", "</tool_response>", "\U0001f600", "e\u0301", "'\"\\", "{{ x }}"]


def checked(text, digest, what):
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != digest:
        sys.exit(f"{what} has sha256 {found}, {digest} is needed")
    return text


def compiled(text):
    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(text)


def random_text(draw):
    if draw.random() < 0.05:
        return "<tool_response>" + draw.choice(["", "sunny"]) + "</tool_response>" + draw.choice(["", " "])
    return "".join(draw.choice(FRAGMENTS) for _ in range(draw.randint(0, 7)))


def random_chat(draw):
    messages = []
    if draw.random() < 0.4:
        messages.append({"role": "system", "content": random_text(draw)})
    for turn in range(draw.randint(0, 5)):
        role = draw.choices(["user", "assistant"], [0.5, 0.5])[0] if draw.random() < 0.4 else ("user", "assistant")[turn % 2]
        if draw.random() < 0.02:
            role = draw.choice(["system", "developer"])
        message = {"role": role, "content": random_text(draw)}
        if role == "assistant" and draw.random() < 0.4:
            message["reasoning_content"] = random_text(draw)
        messages.append(message)
    chat = {"messages": messages, "add_generation_prompt": draw.random() < 0.7}
    if draw.random() < 0.6:
        chat["enable_thinking"] = draw.random() < 0.5
    return chat


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("template", metavar="TEMPLATE", type=Path, help="chat_template.jinja of Qwen3.5-27B")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests/data/chat/goldens.json", help="file to write")
    parser.add_argument("--chats", type=int, default=400, help="number of chats")
    parser.add_argument("--seed", type=int, default=5, help="seed of the chats")
    options = parser.parse_args()

    large = checked(options.template.read_bytes().decode(), LARGE_SHA256, str(options.template))
    small = checked(large.replace(OFF_WHEN_FALSE, ON_WHEN_TRUE), SMALL_SHA256, "the template derived for small models")
    templates = {True: compiled(large), False: compiled(small)}

    draw = random.Random(options.seed)
    goldens = []
    for _ in range(options.chats):
        chat = random_chat(draw)
        thinks_by_default = draw.random() < 0.5
        golden = {"thinks_by_default": thinks_by_default, **chat}
        try:
            golden["text"] = templates[thinks_by_default].render(**chat)
        except jinja2.TemplateError:
            pass
        goldens.append(golden)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(golden, ensure_ascii=False, separators=(",", ":")) for golden in goldens)
    options.out.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
