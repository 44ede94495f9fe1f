"""The world that tiny-sd knows: 64x64 scenes of captioned emoji sprites.

A scene is one object ("a small apple on a blue background") or two, left and right ("a cat and a
rocket on a yellow background"). This module draws scenes, writes their captions and splits the set
of all captions into training, validation and test prompts. Everything downstream (VAE, UNet,
reward, judge, preference pairs) takes its images and captions from here.

Sprites are the 64-pixel Twemoji images (CC-BY 4.0) of the npm package `emoji-datasource-twitter`.
"""

import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SPRITE_PACKAGE = "emoji-datasource-twitter@16.0.0"
SIDE = 64

OBJECTS = {  # caption name -> file stem in the sprite package
    "apple": "1f34e", "banana": "1f34c", "cat": "1f431", "dog": "1f436", "frog": "1f438",
    "panda": "1f43c", "tropical fish": "1f420", "bee": "1f41d", "car": "1f697", "bus": "1f68c",
    "rocket": "1f680", "airplane": "2708-fe0f", "house": "1f3e0", "evergreen tree": "1f332",
    "cactus": "1f335", "sunflower": "1f33b", "mushroom": "1f344", "pizza": "1f355",
    "star": "2b50", "heart": "2764-fe0f", "crescent moon": "1f319",
    "umbrella with rain": "2614", "key": "1f511", "balloon": "1f388",
}
NAMES = list(OBJECTS)

COLOURS = {
    "white": (242, 242, 242), "gray": (140, 140, 140), "red": (200, 60, 60),
    "orange": (240, 150, 60), "green": (80, 160, 80), "blue": (70, 110, 210),
    "purple": (140, 80, 180), "black": (30, 30, 34),
}
COLOUR_NAMES = list(COLOURS)
COLOUR_JITTER = 8  # each channel, uniform, in steps of 1/255

SIZES = {"small": 22, "": 34, "large": 48}  # sprite side in pixels; "" is the unmarked middle size
SIZE_NAMES = list(SIZES)
PAIR_SIDES = (26, 30)  # sprite side where two objects share the scene


@dataclass(frozen=True)
class Scene:
    """What a picture holds; everything the judge can check."""

    first: str
    background: str
    second: str | None = None  # right-hand object
    size: str = ""  # only for single objects

    @property
    def caption(self) -> str:
        if self.second is None:
            words = f"{self.size} {self.first}".strip()
            return f"{article(words)} {words} on {article(self.background)} {self.background} background"
        return (
            f"{article(self.first)} {self.first} and {article(self.second)} {self.second} "
            f"on {article(self.background)} {self.background} background"
        )


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def all_scenes() -> list[Scene]:
    """Every distinct scene description: 576 single objects and 4,416 ordered pairs."""
    singles = [Scene(n, c, size=s) for n in NAMES for c in COLOUR_NAMES for s in SIZE_NAMES]
    pairs = [Scene(a, c, b) for a in NAMES for b in NAMES if a != b for c in COLOUR_NAMES]
    return singles + pairs


SCENE_OF_CAPTION = {scene.caption: scene for scene in all_scenes()}


def random_scene(rng: np.random.Generator) -> Scene:
    """One object in half of the scenes, two in the other half."""
    background = str(rng.choice(COLOUR_NAMES))
    if rng.random() < 0.5:
        return Scene(str(rng.choice(NAMES)), background, size=str(rng.choice(SIZE_NAMES)))
    first, second = rng.choice(NAMES, size=2, replace=False)
    return Scene(str(first), background, str(second))


def changed_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with exactly one attribute wrong."""

    def other(values, value):
        return str(rng.choice([v for v in values if v != value]))

    first, second, background, size = scene.first, scene.second, scene.background, scene.size
    taken = (first, second)
    fresh = str(rng.choice([n for n in NAMES if n not in taken]))
    if second is None:
        kind = rng.choice(["object", "background", "size", "count"])
        if kind == "object":
            return Scene(fresh, background, size=size)
        if kind == "background":
            return Scene(first, other(COLOUR_NAMES, background), size=size)
        if kind == "size":
            return Scene(first, background, size=other(SIZE_NAMES, size))
        return Scene(first, background, fresh)
    kind = rng.choice(["first", "second", "background", "swap", "count"], p=[0.3, 0.3, 0.15, 0.15, 0.1])
    if kind == "first":
        return Scene(fresh, background, second)
    if kind == "second":
        return Scene(first, background, fresh)
    if kind == "background":
        return Scene(first, other(COLOUR_NAMES, background), second)
    if kind == "swap":
        return Scene(second, background, first)
    return Scene(first, background)


def fetch_sprites(folder: Path) -> None:
    """Download the sprite package with npm and unpack the needed sprites into `folder`."""
    if all((folder / f"{stem}.png").exists() for stem in OBJECTS.values()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", SPRITE_PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    archive = next(folder.glob("emoji-datasource-twitter-*.tgz"))
    with tarfile.open(archive) as tar:
        for stem in OBJECTS.values():
            data = tar.extractfile(f"package/img/twitter/64/{stem}.png").read()
            (folder / f"{stem}.png").write_bytes(data)
    archive.unlink()


class World:
    """Draws scenes. Sprites of every size in use are resized once (Lanczos) and kept."""

    def __init__(self, sprites: Path):
        self._sprites: dict[tuple[str, int], Image.Image] = {}
        sides = set(range(PAIR_SIDES[0], PAIR_SIDES[1] + 1))
        for side in SIZES.values():
            sides.update(range(side - 1, side + 2))
        for name, stem in OBJECTS.items():
            full = Image.open(io.BytesIO((sprites / f"{stem}.png").read_bytes())).convert("RGBA")
            for side in sides:
                self._sprites[name, side] = full.resize((side, side), Image.LANCZOS)

    def draw(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """One picture of the scene, uint8 [64, 64, 3]; position, size and colour vary slightly."""
        colour = np.array(COLOURS[scene.background]) + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
        canvas = Image.new("RGB", (SIDE, SIDE), tuple(int(c) for c in colour.clip(0, 255)))
        if scene.second is None:
            side = SIZES[scene.size] + int(rng.integers(-1, 2))
            margin = (SIDE - side) // 2
            reach = min(margin, 10)
            x, y = margin + rng.integers(-reach, reach + 1, 2)
            self._paste(canvas, scene.first, side, int(x), int(y))
            return np.asarray(canvas)
        for name, centre in ((scene.first, 16), (scene.second, 48)):
            side = int(rng.integers(PAIR_SIDES[0], PAIR_SIDES[1] + 1))
            x = centre - side // 2 + int(rng.integers(-1, 2))
            y = SIDE // 2 - side // 2 + int(rng.integers(-8, 9))
            self._paste(canvas, name, side, x, y)
        return np.asarray(canvas)

    def _paste(self, canvas: Image.Image, name: str, side: int, x: int, y: int) -> None:
        sprite = self._sprites[name, side]
        canvas.paste(sprite, (x, y), sprite)

    def sample(self, count: int, seed: int) -> tuple[np.ndarray, list[Scene]]:
        """`count` random scenes: uint8 [count, 64, 64, 3] and their descriptions."""
        rng = np.random.default_rng(seed)
        scenes = [random_scene(rng) for _ in range(count)]
        return np.stack([self.draw(s, rng) for s in scenes]), scenes


VALIDATION_PROMPTS = 256
TEST_PROMPTS = 256


def prompt_splits() -> dict[str, list[str]]:
    """All captions, split once and for all; half of each split are single objects where they last.

    The split serves preference tuning and its evaluation. The base model is pretrained on pictures
    of every caption, as a real base model has seen most of what users later ask for.
    """
    rng = np.random.default_rng(20240)
    captions = [s.caption for s in all_scenes()]
    singles = [c for c in captions if SCENE_OF_CAPTION[c].second is None]
    pairs = [c for c in captions if SCENE_OF_CAPTION[c].second is not None]
    rng.shuffle(singles)
    rng.shuffle(pairs)
    splits = {}
    for split, count in (("validation", VALIDATION_PROMPTS), ("test", TEST_PROMPTS)):
        from_singles = count // 4
        splits[split] = [singles.pop() for _ in range(from_singles)]
        splits[split] += [pairs.pop() for _ in range(count - from_singles)]
        rng.shuffle(splits[split])
    splits["train"] = singles + pairs
    rng.shuffle(splits["train"])
    return splits
