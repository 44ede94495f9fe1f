"""Preference pairs in Pick-a-Pic v2's columns, made by tiny-sd itself and ranked by the reward.

Every prompt gets three pictures: one by `base` (the model that will be tuned), one by `base` or `early`, one by
`long`, each from its own noise; all three pairs are kept, in random left-right order. Training labels are drawn from the
Bradley-Terry model of the reward, near-equal pairs are ties (label 0.5); held-out labels are the reward's plain order.
Training and held-out pairs share no prompt: they come from the train and the validation split.
"""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models import load_generator, load_vae
from sampling import draw
from train_judge import load_judge, verdicts
from train_reward import SAMPLED_CAPTIONS, load_reward, scores
from world import prompt_splits

PROMPTS = {"train": 460, "heldout": 86}
TEMPERATURE = 0.5  # of the Bradley-Terry labels, in standard deviations of the score difference
TIE_MARGIN = 0.03  # |p - 1/2| below this is a tie
JPEG_QUALITY = 95
ROWS_PER_FILE = {"train": 700, "heldout": 300}
CREATED = np.datetime64("2025-01-01T00:00:00", "ns")  # a fixed stamp keeps the files reproducible

SCHEMA = pa.schema([
    ("are_different", pa.bool_()), ("best_image_uid", pa.string()), ("caption", pa.string()),
    ("created_at", pa.timestamp("ns")), ("has_label", pa.bool_()),
    ("image_0_uid", pa.string()), ("image_0_url", pa.string()),
    ("image_1_uid", pa.string()), ("image_1_url", pa.string()),
    ("jpg_0", pa.binary()), ("jpg_1", pa.binary()),
    ("label_0", pa.float64()), ("label_1", pa.float64()),
    ("model_0", pa.string()), ("model_1", pa.string()),
    ("ranking_id", pa.int64()), ("user_id", pa.int64()), ("num_example_per_prompt", pa.int64()),
    ("__index_level_0__", pa.int64()),
    ("score_0", pa.float64()), ("score_1", pa.float64()),
])


def prompts_of(split: str) -> list[str]:
    splits = prompt_splits()
    if split == "heldout":
        return splits["validation"][: PROMPTS[split]]
    assert PROMPTS[split] + SAMPLED_CAPTIONS <= len(splits["train"])
    return splits["train"][: PROMPTS[split]]


def sampled(work: Path, tokenizer, split: str) -> dict[str, np.ndarray]:
    """Three pictures a prompt: `pictures` [3P, 64, 64, 3] uint8, `captions`, `sources`, `seeds` [3P]."""
    path = work / f"pair-samples-{split}.npz"
    if path.exists():
        return dict(np.load(path))
    rng = np.random.default_rng(12 if split == "train" else 13)
    captions = np.repeat(prompts_of(split), 3)
    sources = np.array([
        name for _ in range(PROMPTS[split]) for name in ("base", rng.choice(["base", "early"]), "long")
    ])
    seeds = np.arange(len(captions)) + (0 if split == "train" else 500_000)
    pictures = np.zeros((len(captions), 64, 64, 3), np.uint8)
    vae = load_vae(work)
    for source in np.unique(sources):
        rows = np.flatnonzero(sources == source)
        unet, text_encoder = load_generator(work, tokenizer, str(source))
        pictures[rows] = draw(
            unet, text_encoder, vae, tokenizer, [str(c) for c in captions[rows]], [int(s) for s in seeds[rows]]
        )
        print(f"pairs: {len(rows)} {split} pictures by {source}", flush=True)
    result = {"pictures": pictures, "captions": captions, "sources": sources, "seeds": seeds}
    np.savez(path, **result)
    return result


def jpeg(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def ordered_pairs(count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices [3P, 2] of all pairs within each prompt's three pictures, left and right at random."""
    pairs = np.array([
        (3 * prompt + i, 3 * prompt + j) for prompt in range(count // 3) for i, j in combinations(range(3), 2)
    ])
    swap = rng.random(len(pairs)) < 0.5
    pairs[swap] = pairs[swap][:, ::-1]
    return pairs


def labels_of(difference: np.ndarray, split: str, rng: np.random.Generator) -> np.ndarray:
    """label_0 of each pair: 1, 0, or 0.5 for a tie."""
    if split == "heldout":
        return np.where(difference == 0, 0.5, (difference > 0).astype(float))
    chance = 1 / (1 + np.exp(-difference / (TEMPERATURE * difference.std())))
    noisy = (rng.random(len(difference)) < chance).astype(float)
    return np.where(np.abs(chance - 0.5) < TIE_MARGIN, 0.5, noisy)


def make_pairs(work: Path, folder: Path, tokenizer) -> None:
    reward, judge = load_reward(work, tokenizer), load_judge(work)
    for split in PROMPTS:
        samples = sampled(work, tokenizer, split)
        captions = [str(c) for c in samples["captions"]]
        encoded = [jpeg(p) for p in samples["pictures"]]
        seen = np.stack([np.asarray(Image.open(io.BytesIO(b))) for b in encoded])  # what a reader of the file sees
        score = scores(reward, tokenizer, seen, captions)
        rng = np.random.default_rng(14 if split == "train" else 15)
        pairs = ordered_pairs(len(captions), rng)
        difference = score[pairs[:, 0]] - score[pairs[:, 1]]
        labels = labels_of(difference, split, rng)
        report(split, samples, score, pairs, labels, verdicts(judge, seen, captions))
        write(folder, split, samples, encoded, score, pairs, labels)


def report(split, samples, score, pairs, labels, verdict) -> None:
    """The figures that README.md quotes."""
    difference = score[pairs[:, 0]] - score[pairs[:, 1]]
    decided = labels != 0.5
    agree = ((difference > 0) == (labels == 1))[decided].mean()
    judged = verdict["score"][pairs[:, 0]] - verdict["score"][pairs[:, 1]]
    one_right = verdict["all"][pairs[:, 0]] != verdict["all"][pairs[:, 1]]
    same_source = samples["sources"][pairs[:, 0]] == samples["sources"][pairs[:, 1]]
    match = (difference > 0) == (judged > 0)
    print(
        f"pairs {split}: {len(pairs)}, ties {np.mean(~decided):.3f}, decided labels that follow the score {agree:.3f}\n"
        f"  reward against judge within a prompt: all {match.mean():.3f}, same source {match[same_source].mean():.3f}, "
        f"where the judge finds one right and one wrong {match[one_right].mean():.3f} ({one_right.mean():.2f} of pairs)",
        flush=True,
    )
    for source in np.unique(samples["sources"]):
        rows = samples["sources"] == source
        shares = ", ".join(f"{k} {verdict[k][rows].mean():.2f}" for k in ("background", "objects", "clean", "all"))
        print(f"  {source}: {rows.sum()} pictures, mean score {score[rows].mean():.2f}; judge: {shares}", flush=True)


def write(folder: Path, split: str, samples, encoded, score, pairs, labels) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{split}-*.parquet"):
        old.unlink()
    uid = lambda i: f"{split}-{i:05d}"
    rows = []
    for index, ((left, right), label) in enumerate(zip(pairs, labels)):
        best = "tie" if label == 0.5 else uid(left if label == 1 else right)
        rows.append({
            "are_different": True, "best_image_uid": best, "caption": str(samples["captions"][left]),
            "created_at": CREATED, "has_label": True,
            "image_0_uid": uid(left), "image_0_url": "", "image_1_uid": uid(right), "image_1_url": "",
            "jpg_0": encoded[left], "jpg_1": encoded[right], "label_0": label, "label_1": 1 - label,
            "model_0": f"tiny-sd-{samples['sources'][left]}", "model_1": f"tiny-sd-{samples['sources'][right]}",
            "ranking_id": index, "user_id": 0, "num_example_per_prompt": 3, "__index_level_0__": index,
            "score_0": score[left], "score_1": score[right],
        })
    step = ROWS_PER_FILE[split]
    parts = [rows[i : i + step] for i in range(0, len(rows), step)]
    for number, part in enumerate(parts):
        path = folder / f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema=SCHEMA), path, compression="snappy")
