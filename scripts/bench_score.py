#!/usr/bin/env python3
"""Pictures scored per second by ortdpo and by transformers with Pillow, on the same model, pictures and machine.

    scripts/export_rewards.py clip-b32 --random --output /tmp/clip-b32
    scripts/bench_score.py --reward /tmp/clip-b32 [--pictures 256] [--rounds 2] [--threads 2]

The pictures are 512x512 JPEG files made here; prompts are twenty, each embedded once on either side. The two take turns, each in a
process of its own that is given all cores (`cargo bench` builds ortdpo's side first). transformers' side is what its own examples
do: open with Pillow, CLIPImageProcessor, CLIPModel in batches of 32, float32, torch.inference_mode; with `--workers N` pictures are
prepared by N further processes. Bare rates are those of either side's image network on pixels that are there already.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BATCH = 32


def make_pictures(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:512, 0:512]
    for index in range(count):
        edges = np.where((x // 40 + y // 60 + index) % 2 == 0, 90, 0)
        planes = [x / 4 + edges, y / 4 + edges, (x + y) / 8 + rng.integers(0, 16, x.shape)]
        Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(folder / f"{index:05}.jpg", quality=90)


class Pictures:
    """Prepared pictures by number, for a DataLoader."""

    def __init__(self, paths):
        from transformers import CLIPImageProcessor

        self.paths, self.processor = paths, CLIPImageProcessor()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        from PIL import Image

        return self.processor(Image.open(self.paths[index]).convert("RGB"), return_tensors="pt").pixel_values[0]


def reference(pictures: Path, threads: int, workers: int, seed: int) -> dict[str, float]:
    """transformers' side, from files to scores."""
    import sys

    import torch

    sys.path.insert(0, str(REPOSITORY / "scripts/rewards"))
    from published import Request, hf_clip

    torch.set_num_threads(threads)
    model, tokenizer = hf_clip(Request(name="clip-b32", output=pictures, seed=seed), "clip-b32")
    words = [f"a photo of {n} cats on a red background" for n in range(20)]
    data = Pictures(sorted(pictures.glob("*.jpg")))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers)
    with torch.inference_mode():
        batch = torch.stack([data[i] for i in range(BATCH)])
        model.get_image_features(batch)
        started, runs = time.perf_counter(), 0
        while time.perf_counter() - started < 5:
            model.get_image_features(batch)
            runs += 1
        bare = runs * BATCH / (time.perf_counter() - started)
        started = time.perf_counter()
        ids = tokenizer(words, padding="max_length", max_length=77, return_tensors="pt")
        text = torch.nn.functional.normalize(model.get_text_features(**ids), dim=-1)
        scores = []
        for pixels in loader:
            image = torch.nn.functional.normalize(model.get_image_features(pixels), dim=-1)
            rows = (torch.arange(len(image)) + len(scores)) % len(words)
            scores += (image * text[rows]).sum(-1).tolist()
        return {"scored_per_second": len(scores) / (time.perf_counter() - started), "bare_per_second": bare}


def side(arguments, pictures: Path, name: str) -> dict:
    if name == "ortdpo":
        command = ["cargo", "bench", "--quiet", "--bench", "score", "--", str(arguments.reward), str(pictures), "1"]
    else:
        command = [
            arguments.python, __file__, "--reference", str(pictures), "--threads", str(arguments.threads),
            "--workers", str(arguments.workers), "--seed", str(arguments.seed),
        ]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    found = json.loads(output.strip().splitlines()[-1])
    return {key: value[0] if isinstance(value, list) else value for key, value in found.items()}


def main() -> None:
    import sys

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", type=Path, help="folder of `export_rewards.py clip-b32 --random`")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the random weights, as given to export_rewards.py")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the reference")
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reference:
        print(json.dumps(reference(arguments.reference, arguments.threads, arguments.workers, arguments.seed)))
        return
    if arguments.reward is None:
        parser.error("--reward is needed")
    rates = {"ortdpo": [], "transformers": []}
    with tempfile.TemporaryDirectory() as scratch:
        make_pictures(Path(scratch), arguments.pictures)
        for number in range(arguments.rounds):
            for name in rates:
                rates[name].append(side(arguments, Path(scratch), name))
                print(f"round {number + 1}: {name} {rates[name][-1]}", file=sys.stderr, flush=True)
    for name, found in rates.items():
        scored, bare = (statistics.median(f[key] for f in found) for key in ("scored_per_second", "bare_per_second"))
        print(f"{name}: {scored:.1f} pictures/s, {scored / bare:.0%} of the bare network's {bare:.1f}")
    ratios = [a["scored_per_second"] / b["scored_per_second"] for a, b in zip(rates["ortdpo"], rates["transformers"])]
    print(f"ortdpo is {statistics.median(ratios):.2f} times as fast; rounds: {', '.join(f'{r:.2f}' for r in ratios)}")


if __name__ == "__main__":
    main()
