"""Builds models/tiny-sd and models/tiny-rewards from nothing, stage by stage.

    python scripts/tiny_sd/build.py                 all stages that are not done yet
    python scripts/tiny_sd/build.py vae unet        these stages, again

Intermediate results live in the work folder (`--work`, default `.data/tiny_sd`). See README.md here.
"""

import argparse
import time
from pathlib import Path

from export import export_pipeline
from export_rewards import export_rewards
from sample_pairs import make_pairs
from tokenizer import build_tokenizer
from train_aesthetic import train_aesthetic
from train_judge import train_judge
from train_reward import train_reward
from train_unet import train_unet
from train_vae import train_vae
from world import World, fetch_sprites

REPOSITORY = Path(__file__).resolve().parents[2]


class Build:
    def __init__(self, work: Path, models: Path):
        self.work, self.models = work, models
        fetch_sprites(work / "sprites")
        self.world = World(work / "sprites")
        self.tokenizer = build_tokenizer(work / "tokenizer")

    def vae(self):
        train_vae(self.work, self.world)

    def unet(self):
        train_unet(self.work, self.world, self.tokenizer)

    def judge(self):
        train_judge(self.work, self.world)

    def reward(self):
        train_reward(self.work, self.world, self.tokenizer)

    def pairs(self):
        make_pairs(self.work, self.models / "tiny-sd/pairs", self.tokenizer)

    def aesthetic(self):
        train_aesthetic(self.work, self.world, self.tokenizer)

    def export(self):
        export_pipeline(self.work, self.models / "tiny-sd", self.tokenizer, "base")
        export_rewards(self.work, self.models / "tiny-rewards", self.tokenizer)


STAGES = ["vae", "unet", "judge", "reward", "pairs", "aesthetic", "export"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".data/tiny_sd")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models")
    arguments = parser.parse_args()
    unknown = set(arguments.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; known: {', '.join(STAGES)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    build = Build(arguments.work, arguments.models)
    for stage in STAGES:
        done = arguments.work / f"{stage}.done"
        if stage not in arguments.stages and (arguments.stages or done.exists()):
            continue
        started = time.time()
        getattr(build, stage)()
        done.write_text(f"{time.time() - started:.0f} s\n")
        print(f"stage {stage} done in {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
