#!/usr/bin/env python3
"""Exports a published reward model to a folder that ortdpo reads: ONNX files, tokenizer, reward.yaml (docs/reward.md).

    scripts/export_rewards.py pickscore --checkpoint yuvalkirstain/PickScore_v1 --output models/pickscore
    scripts/export_rewards.py hpsv2.1 --checkpoint HPS_v2.1_compressed.pt --output models/hpsv2.1 --fp16
    scripts/export_rewards.py aesthetic-v2 --checkpoint openai/clip-vit-large-patch14 \\
        --head sac+logos+ava1-l14-linearMSE.pth --output models/aesthetic-v2
    scripts/export_rewards.py clip-l14 --random --output /tmp/clip       the same architecture with random weights

A checkpoint is a file, a folder or a hub id, as the model's own code takes it; ImageReward's also needs BERT's vocabulary
(`--tokenizer vocab.txt` of bert-base-uncased). Needs scripts/requirements.txt.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "rewards"))

from published import NAMES, Request, export_reward  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the reward's folder")
    parser.add_argument("--checkpoint", metavar="PATH|HUB_ID", help="trained weights")
    parser.add_argument("--head", type=Path, metavar="FILE", help="LAION's .pth, for aesthetic-v1 and aesthetic-v2")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer where the checkpoint has none")
    parser.add_argument("--fp16", action="store_true", help="weights and arithmetic in half precision")
    parser.add_argument("--no-antialias", action="store_true", help="HPSv2's resize as with torchvision before 0.17")
    parser.add_argument("--random", action="store_true", help="seeded random weights instead of a checkpoint")
    parser.add_argument("--reduced", action="store_true", help="with --random: the architecture with small numbers everywhere")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    arguments = parser.parse_args()
    if bool(arguments.checkpoint) == arguments.random:
        parser.error("give either --checkpoint or --random")
    if arguments.reduced and not arguments.random:
        parser.error("--reduced goes with --random")
    if arguments.name.startswith("aesthetic") and arguments.checkpoint and not arguments.head:
        parser.error(f"{arguments.name} needs --head")
    export_reward(Request(
        name=arguments.name, output=arguments.output, checkpoint=arguments.checkpoint, head=arguments.head,
        tokenizer=arguments.tokenizer, reduced=arguments.reduced, fp16=arguments.fp16, antialias=not arguments.no_antialias,
        seed=arguments.seed,
    ))


if __name__ == "__main__":
    main()
