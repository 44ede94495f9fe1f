"""Tokenizer folders in the forms that ortdpo reads, and small vocabularies for models with random weights."""

import json
import string
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, processors
from transformers import BertTokenizer, BertTokenizerFast
from transformers.convert_slow_tokenizer import SpmConverter

WORDS = (
    "a an and the of in on at with under by photo picture painting portrait small large red blue green yellow cat dog "
    "house tree rocket background detailed art style light horse astronaut riding moon sea night stars"
).split()


def write_config(folder: Path, length: int, **tokens: str) -> None:
    config = {"model_max_length": length, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_open_clip(tokenizer, folder: Path, length: int) -> None:
    """open_clip's SimpleTokenizer as CLIP's vocab.json and merges.txt. It pads with 0."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.encoder, ensure_ascii=False))
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges if a))
    start, end = list(tokenizer.encoder)[-2:]
    write_config(folder, length, bos_token=start, eos_token=end, unk_token=end, pad_token="!")


def save_bert(folder: Path, length: int, vocabulary: Path | None = None) -> BertTokenizer:
    """bert-base-uncased's tokenizer with the two tokens that BLIP adds, or one of a few words; returns the slow reference."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if vocabulary is None:
            vocabulary = Path(scratch) / "vocab.txt"
            letters = string.ascii_lowercase + string.digits + string.punctuation
            pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS]
            vocabulary.write_text("\n".join(dict.fromkeys(pieces)) + "\n")
        fast, slow = (kind(str(vocabulary), do_lower_case=True) for kind in (BertTokenizerFast, BertTokenizer))
    for tokenizer in (fast, slow):
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    fast.backend_tokenizer.no_truncation()
    fast.backend_tokenizer.no_padding()
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_config(folder, length, pad_token="[PAD]")
    return slow


def train_sentencepiece(path: Path, lines: list[str]) -> None:
    """A unigram model of a few hundred pieces, in the form of SigLIP's `spiece.model`."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), vocab_size=200, hard_vocab_limit=False,
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, user_defined_symbols=["<pad>"], minloglevel=2, num_threads=1,
        normalization_rule_name="identity",
    )
    path.with_suffix(".vocab").unlink()


class SiglipConverter(SpmConverter):
    """SigLIP's tokenizer: lower case, ASCII punctuation dropped, white space joined; the end token closes the text."""

    def normalizer(self, proto):
        punctuation = "[" + "".join(f"\\{c}" for c in string.punctuation) + "]"
        return normalizers.Sequence([
            normalizers.Lowercase(), normalizers.Replace(Regex(punctuation), ""), normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(), super().normalizer(proto),
        ])

    def post_processor(self):
        return processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", self.original_tokenizer.eos_token_id)])


def save_siglip(slow, folder: Path, length: int) -> Tokenizer:
    """transformers' SiglipTokenizer, which has no fast form of its own, as tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = SiglipConverter(slow).converted()
    fast.save(str(folder / "tokenizer.json"))
    write_config(folder, length, pad_token=slow.pad_token)
    return fast
