#!/usr/bin/env python3
"""Writes tests/data/tokenizer: a small tokenizer.json and what Hugging Face `tokenizers` makes of random strings.

The tokenizer has the pipeline of Qwen3.5 (NFC, its split pattern, byte-level BPE) and is trained on words invented here
from many scripts, so that merges exist beyond ASCII. Each line of vectors.jsonl is one string:
  text   the string (or hex: its bytes, where they are not valid UTF-8; Hugging Face sees decode("utf-8", "replace"))
  ids    with added tokens recognised
  plain  with none recognised, where that differs
Only characters on which the Unicode tables in use agree are drawn: assigned in Python's table, which must not be newer than
15.0, and without the marks that are younger than the table behind Hugging Face's NFC (Unicode 9).

Needs the Python package tokenizers. The same arguments give the same files.
"""

import argparse
import json
import random
import sys
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# The last three begin alike, so that the longest has to win.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim", "<|fim|>", "<|fim|>+"]
NOT_SPECIAL = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

# First letters of scripts whose words are invented for training, with how many letters follow.
ALPHABETS = [("a", 26), ("A", 26), ("\u00e0", 24), ("\u03b1", 25), ("\u0430", 32), ("\u05d0", 27), ("\u0627", 20),
             ("\u0915", 30), ("\u0e01", 40), ("\u10d0", 33), ("\u3042", 60), ("\u30a2", 60), ("\u4e00", 60),
             ("\uac00", 80), ("\U0001f600", 40)]
MARKS = ["", "", "", "\u0301", "\u0308", "\u0323", "\u093f", "\u094d", "\u0e34", "\u064e", "\u05b8"]
SPACES = [" ", " ", " ", "  ", "\n", "\r\n", "\n\n", "\t", "\r", "\u00a0", "\u3000", "\u2028", "\u180e", "\u200b", "\x0b",
          "\x0c", "\x1c", "\x85", " \n ", "\r\n\r\n"]
CONTRACTIONS = ["'s", "'S", "'t", "'re", "'RE", "'Ve", "'m", "'ll", "'Ll", "'d", "'\u017f", "'x", "\u2019s", "''s"]
DIGITS = list("0123456789") + ["\u0665", "\u096b", "\u2155", "\u2164", "\u3007", "\u3285", "\uff15", "\U0001d7d8", "\u00b2"]
EMOJI = ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1ee", "\u2764\ufe0f", "1\ufe0f\u20e3"]


def disagreeing():
    """Characters that Hugging Face's NFC treats differently from Python's."""
    ours = normalizers.NFC().normalize_str
    found = {0x11935, 0x11930, 0x11938}  # a pair composed since Unicode 13
    for code in range(0x110000):
        mark = chr(code)
        if unicodedata.combining(mark) == 0:
            continue
        for text in ("a\u0301" + mark + "\u0316", "a\u0345" + mark, "a" + mark + "\u0334", "a\u0323\u093c" + mark):
            if ours(text) != unicodedata.normalize("NFC", text):
                found.add(code)
    return found


def assigned_blocks():
    """All drawable characters, in blocks of 256 code points so that rare scripts are drawn as often as ideographs."""
    excluded = disagreeing()
    blocks = []
    for start in range(0, 0x110000, 256):
        block = [chr(c) for c in range(start, start + 256) if c not in excluded and unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
        if block:
            blocks.append(block)
    return blocks


class Strings:
    def __init__(self, seed, words):
        self.draw = random.Random(seed)
        self.words = words
        self.blocks = assigned_blocks()
        self.marks = [c for block in self.blocks for c in block if unicodedata.category(c) in ("Mn", "Mc", "Me")]

    def scalar(self):
        return self.draw.choice(self.draw.choice(self.blocks))

    def ascii(self):
        return chr(self.draw.randrange(128))

    def punctuation(self):
        return "".join(self.draw.choice("!?.,:;-_/\\'\"()[]{}<>|@#$%^&*+=~`") for _ in range(self.draw.randint(1, 4)))

    def marked(self):
        base = self.draw.choice(["a", "e", "o", " ", "\n", ".", "1", "\u0915", "\u1100", "\u4e00", ""])
        marks = self.draw.choices(self.marks, k=self.draw.randint(1, 3)) + self.draw.choices(MARKS, k=self.draw.randint(0, 2))
        self.draw.shuffle(marks)
        return base + "".join(marks)

    def hangul(self):
        kind = self.draw.randrange(3)
        lead, vowel, tail = 0x1100 + self.draw.randrange(19), 0x1161 + self.draw.randrange(21), 0x11a8 + self.draw.randrange(27)
        if kind == 0:
            return chr(lead) + chr(vowel) + (chr(tail) if self.draw.random() < 0.5 else "")
        if kind == 1:
            return chr(0xac00 + 28 * self.draw.randrange(399)) + chr(tail)
        return chr(self.draw.choice([lead, vowel, tail]))

    def added(self):
        token = self.draw.choice(SPECIAL + NOT_SPECIAL)
        return token if self.draw.random() < 0.7 else token[:self.draw.randint(1, len(token))]

    def piece(self):
        kinds = [(self.scalar, 6), (self.ascii, 2), (self.punctuation, 2), (self.marked, 3), (self.hangul, 2), (self.added, 2),
                 (lambda: self.draw.choice(SPACES), 5), (lambda: self.draw.choice(CONTRACTIONS), 2),
                 (lambda: self.draw.choice(DIGITS), 2), (lambda: self.draw.choice(EMOJI), 1),
                 (lambda: self.draw.choice(self.words), 6)]
        return self.draw.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]()

    def text(self):
        return "".join(self.piece() for _ in range(self.draw.randint(1, 9)))

    def broken_bytes(self):
        raw = bytearray(self.text().encode())
        for _ in range(self.draw.randint(1, 3)):
            where = self.draw.randrange(len(raw) + 1)
            kind = self.draw.randrange(3)
            if kind == 0:
                raw[where:where] = bytes([self.draw.randrange(256)])
            elif kind == 1:
                del raw[where:where + 1]
            else:
                raw[where:where] = self.draw.choice([b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xf0\x9f\x98"])
        return bytes(raw)


def invent_words(seed, count):
    draw = random.Random(seed)
    words = []
    for index in range(count):
        first, letters = ALPHABETS[index % len(ALPHABETS)]
        syllables = [chr(ord(first) + draw.randrange(letters)) for _ in range(draw.randint(2, 6))]
        words.append("".join(unicodedata.normalize("NFC", s + draw.choice(MARKS)) for s in syllables))
    return words


def train(seed, words, tokens):
    draw = random.Random(seed + 1)
    weights = [1.0 / (rank + 1) for rank in range(len(words))]
    lines = [" ".join(draw.choices(words, weights, k=12)) + draw.choice([".", "!\n", "'s", "...", " :)\r\n", "\n\n"]) for _ in range(4000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=tokens, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests/data/tokenizer", help="folder to write")
    parser.add_argument("--vectors", type=int, default=1500, help="number of strings")
    parser.add_argument("--seed", type=int, default=20, help="seed of the strings; the tokenizer has its own")
    options = parser.parse_args()
    if tuple(map(int, unicodedata.unidata_version.split("."))) > (15, 0, 0):
        sys.exit(f"Python's Unicode table is {unicodedata.unidata_version}; at most 15.0 is needed (Python 3.11 or 3.12)")

    words = invent_words(1, 600)
    options.out.mkdir(parents=True, exist_ok=True)
    plain = train(1, words, 2400)
    tokenizer = Tokenizer.from_str(plain.to_str())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL])
    (options.out / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")

    strings = Strings(options.seed, words)
    with open(options.out / "vectors.jsonl", "w", encoding="utf-8", newline="\n") as out:
        for index in range(options.vectors):
            if index % 10 == 9:
                raw = strings.broken_bytes()
                text, entry = raw.decode("utf-8", "replace"), {"hex": raw.hex()}
            else:
                text = strings.text()
                entry = {"text": text}
            entry["ids"] = tokenizer.encode(text, add_special_tokens=False).ids
            plain_ids = plain.encode(text, add_special_tokens=False).ids
            if plain_ids != entry["ids"]:
                entry["plain"] = plain_ids
            out.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
