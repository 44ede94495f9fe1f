"""A small byte-pair tokenizer for the captions, in the files that transformers' `CLIPTokenizer` reads.

The merges are learned from all captions by plain BPE (Sennrich et al. 2016) with CLIP's `</w>` mark at
the end of a word, until every caption word is one token. The base alphabet is lower-case letters,
digits and common punctuation: any English text can be tokenized, unknown words just take more tokens.
"""

import json
import string
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from world import all_scenes

CONTEXT = 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
ALPHABET = string.ascii_lowercase + string.digits + ".,'!?-"


def learn_merges(words: Counter) -> list[tuple[str, str]]:
    """Merge the most frequent neighbouring symbols (ties: alphabetical) until no word has two."""
    spelled = {word: list(word[:-1]) + [word[-1] + "</w>"] for word in words}
    merges = []
    while True:
        neighbours = Counter()
        for word, symbols in spelled.items():
            for pair in zip(symbols, symbols[1:]):
                neighbours[pair] += words[word]
        if not neighbours:
            return merges
        best = min(neighbours, key=lambda pair: (-neighbours[pair], pair))
        merges.append(best)
        for word, symbols in spelled.items():
            spelled[word] = merge(symbols, best)


def merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files into `folder` (once) and load it from there."""
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        merges = learn_merges(Counter(w for s in all_scenes() for w in s.caption.split()))
        tokens = list(ALPHABET) + [c + "</w>" for c in ALPHABET] + ["".join(m) for m in merges] + [BOS, EOS]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n")
        lines = ["#version: 0.2"] + [" ".join(m) for m in merges]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n")
        CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"),
            pad_token=EOS, unk_token=EOS, bos_token=BOS, eos_token=EOS, model_max_length=CONTEXT,
        ).save_pretrained(folder)
        (folder / "added_tokens.json").unlink(missing_ok=True)
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: CLIPTokenizer, captions: list[str]):
    """Token ids, int64 [N, 16], padded and truncated to the context."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
    ).input_ids
