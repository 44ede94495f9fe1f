"""Trains the judge: a small CNN that says what a picture holds. It never labels preferences.

Heads: first object, second object (24 sprites + "none"), background (8), junk (scrambled or blurred pictures). It is
trained on drawn scenes alone, with noise, blur and shifts, and on junk made from them.
"""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from models import save_atomically, to_tensor
from world import COLOUR_NAMES, NAMES, SCENE_OF_CAPTION, World

STEPS = 700
BATCH = 64
LAYERS = [  # channels in, channels out, kernel, stride: 64x64 to 4x4
    (3, 32, 5, 2), (32, 64, 3, 2), (64, 128, 3, 1), (128, 128, 3, 2), (128, 192, 3, 1), (192, 192, 3, 2),
]


class Judge(torch.nn.Module):
    def __init__(self):
        super().__init__()
        layers = []
        for into, out, kernel, stride in LAYERS:
            layers += [torch.nn.Conv2d(into, out, kernel, stride, kernel // 2), torch.nn.BatchNorm2d(out), torch.nn.ReLU()]
        self.trunk = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(192 * 16, 256), torch.nn.ReLU())
        self.first = torch.nn.Linear(256, len(NAMES))
        self.second = torch.nn.Linear(256, len(NAMES) + 1)
        self.background = torch.nn.Linear(256, len(COLOUR_NAMES))
        self.junk = torch.nn.Linear(256, 2)

    def forward(self, pictures):
        features = self.trunk(pictures)
        return self.first(features), self.second(features), self.background(features), self.junk(features)


def labels_of(scenes) -> torch.Tensor:
    """[N, 3]: first object, second object (24 for none), background."""
    second = lambda s: len(NAMES) if s.second is None else NAMES.index(s.second)
    return torch.tensor([[NAMES.index(s.first), second(s), COLOUR_NAMES.index(s.background)] for s in scenes])


def junk_of(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures without a nameable object: tiles shuffled, or strongly blurred and noised."""
    tiles = pictures.unfold(2, 16, 16).unfold(3, 16, 16).reshape(len(pictures), 3, 16, 16, 16)
    order = torch.stack([torch.randperm(16) for _ in pictures])
    mixed = torch.stack([t[:, o] for t, o in zip(tiles, order)]).reshape(len(pictures), 3, 4, 4, 16, 16)
    mixed = mixed.permute(0, 1, 2, 4, 3, 5).reshape(len(pictures), 3, 64, 64)
    blurred = F.interpolate(F.avg_pool2d(pictures, 16), size=64, mode="bilinear") + 0.1 * torch.randn_like(pictures)
    return torch.where((torch.rand(len(pictures), 1, 1, 1) < 0.5), mixed, blurred)


def disturbed(pictures: torch.Tensor) -> torch.Tensor:
    """What a generator may do to a picture that still counts: noise, slight blur, shifted colours."""
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(len(pictures), 1, 1, 1) * 0.8
    noise = 0.12 * torch.rand(len(pictures), 1, 1, 1) * torch.randn_like(pictures)
    tint = 0.08 * torch.randn(len(pictures), 3, 1, 1)
    return (share * soft + (1 - share) * pictures + noise + tint).clamp(-1, 1)


def train_judge(work: Path, world: World) -> None:
    torch.manual_seed(5)
    pictures, scenes = world.sample(16_000, seed=5)
    pictures, labels = to_tensor(pictures), labels_of(scenes)
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS, pct_start=0.1)
    started = time.time()
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(pictures), (BATCH,))
        batch = disturbed(pictures[rows])
        spoilt = torch.arange(BATCH) < BATCH // 5
        batch[spoilt] = junk_of(batch[spoilt])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            heads = judge(batch.contiguous(memory_format=torch.channels_last))
        truth, good = labels[rows], ~spoilt
        loss = sum(F.cross_entropy(h[good].float(), truth[good, i]) for i, h in enumerate(heads[:3]))
        loss = loss + F.cross_entropy(heads[3].float(), spoilt.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"judge step {step}/{STEPS} loss {loss.item():.4f} {time.time() - started:.0f} s", flush=True)
    judge.eval()
    fresh, fresh_scenes = world.sample(1000, seed=6)
    right = verdicts(judge, fresh, [s.caption for s in fresh_scenes])
    print(f"judge: {right['all'].mean():.4f} of 1000 unseen scenes all right", flush=True)
    save_atomically({"judge": judge.state_dict(), "accuracy": float(right["all"].mean())}, work / "judge.pt")


def load_judge(work: Path) -> Judge:
    judge = Judge()
    judge.load_state_dict(torch.load(work / "judge.pt", weights_only=True)["judge"])
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, pictures: np.ndarray, captions: list[str]) -> dict[str, np.ndarray]:
    """Per picture: `background`, `objects` (all and only those asked for), `clean` (not junk), `all`, and `score`, the
    log-probability of everything the caption asks for."""
    logs = [[], [], [], []]
    for start in range(0, len(pictures), 250):
        for list_, head in zip(logs, judge(to_tensor(pictures[start : start + 250]))):
            list_.append(head.float().log_softmax(-1))
    first, second, background, junk = (torch.cat(x) for x in logs)
    truth = labels_of([SCENE_OF_CAPTION[c] for c in captions])
    hit = lambda head, i: (head.argmax(-1) == truth[:, i]).numpy()
    objects, right_background = hit(first, 0) & hit(second, 1), hit(background, 2)
    clean = (junk.argmax(-1) == 0).numpy()
    pick = lambda head, i: head.gather(1, truth[:, i : i + 1])[:, 0]
    score = pick(first, 0) + pick(second, 1) + pick(background, 2) + junk[:, 0]
    return {
        "background": right_background, "objects": objects, "clean": clean,
        "all": objects & right_background & clean, "score": score.numpy(),
    }
