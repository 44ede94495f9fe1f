"""Writes models/tiny-rewards: the reward in the layout of `optimum-cli export onnx` for CLIP, the aesthetic rating, the judge.

All take `pixel_values`, float [N, 3, 64, 64] in [-1, 1]. The judge's outputs are logits; `labels.json` names them. The
manifests beside them are what ortdpo reads (docs/reward.md).
"""

import json
from pathlib import Path

import torch

from export import export_part, save_tokenizer, write_json
from tokenizer import encode
from train_aesthetic import export_aesthetic
from train_judge import load_judge
from train_reward import load_reward
from world import COLOUR_NAMES, NAMES, all_scenes


PREPROCESSING = """\
    preprocessing:
      - {step: pillow_resize_shortest_v1, size: 64, filter: bicubic}
      - {step: center_crop_transformers_v1, size: 64}
      - {step: to_unit_float_v1}
      - {step: normalize_v1, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
"""

CLIP = f"""\
scorer:
  kind: dual_tower
  image:
    model: model.onnx
    input: pixel_values
    output: image_embeds
{PREPROCESSING}\
  text:
    model: model.onnx
    output: text_embeds
    prompt: {{ids: input_ids, mask: attention_mask, tokenizer: tokenizer, length: 16, pad_id: PAD_ID}}
  scale: {{kind: logit, logit_scale: LOGIT_SCALE}}
"""

AESTHETIC = f"""\
scorer:
  kind: image_head
  image:
    model: model.onnx
    input: pixel_values
    output: image_embeds
{PREPROCESSING}\
  head: {{file: head.safetensors, l2_normalize: true}}
"""

JUDGE = f"""\
scorer:
  kind: classifier_match
  image:
    model: model.onnx
    input: pixel_values
{PREPROCESSING}\
  labels: labels.json
  heads:
    - {{output: first, expect: {{kind: mentioned, nth: 1}}}}
    - {{output: second, expect: {{kind: mentioned, nth: 2, otherwise: none}}}}
    - {{output: background, expect: {{kind: mentioned, nth: 1}}}}
    - {{output: junk, expect: {{kind: always, label: clean}}}}
  measure: probability
"""


def write_manifest(folder: Path, unit: str, script: str, scorer: str) -> None:
    (folder / "reward.yaml").write_text(
        "# yaml-language-server: $schema=../../../docs/reward.schema.json\n"
        f'name: {folder.name}\nversion: "1"\nunit: {unit}\nlicence: CC-BY-4.0\nsource: scripts/tiny_sd/{script}\n{scorer}'
    )


class Similarity(torch.nn.Module):
    """CLIPModel with plain tensors as outputs; logits are exp(logit_scale) * cosine."""

    def __init__(self, reward):
        super().__init__()
        self.reward = reward

    def forward(self, input_ids, pixel_values, attention_mask):
        out = self.reward(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask)
        return out.logits_per_image, out.logits_per_text, out.text_embeds, out.image_embeds


def export_rewards(work: Path, folder: Path, tokenizer) -> None:
    torch.manual_seed(0)
    reward = load_reward(work, tokenizer)
    captions = [s.caption for s in all_scenes()[::1200]]
    ids = encode(tokenizer, captions)
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    text, image = ("text_batch",), ("image_batch",)
    config = {**json.loads(reward.config.to_json_string(use_diff=True)), "architectures": ["CLIPModel"]}
    export_part(
        folder / "clip", Similarity(reward), config,
        {"input_ids": ids, "pixel_values": pictures, "attention_mask": torch.ones_like(ids)},
        ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
        axes={
            "input_ids": text, "attention_mask": text, "text_embeds": text, "logits_per_text": (*text, *image),
            "pixel_values": image, "image_embeds": image, "logits_per_image": (*image, *text),
        },
    )
    save_tokenizer(tokenizer, folder / "clip/tokenizer")
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 64}, "do_resize": True, "resample": 3,
        "crop_size": {"height": 64, "width": 64}, "do_center_crop": True, "do_convert_rgb": True, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }
    write_json(folder / "clip/preprocessor_config.json", preprocessor)
    scale = repr(reward.logit_scale.item())
    manifest = CLIP.replace("PAD_ID", str(tokenizer.pad_token_id)).replace("LOGIT_SCALE", scale)
    write_manifest(folder / "clip", "exp(logit_scale) x cosine", "train_reward.py", manifest)
    export_aesthetic(work, folder / "aesthetic", pictures)
    write_manifest(folder / "aesthetic", "rating, 1 to 10", "train_aesthetic.py", AESTHETIC)
    labels = {
        "first": NAMES, "second": [*NAMES, "none"], "background": COLOUR_NAMES, "junk": ["clean", "junk"],
    }
    export_part(
        folder / "judge", load_judge(work), {"model_type": "tiny-judge", "image_size": 64},
        {"pixel_values": pictures}, list(labels),
    )
    write_json(folder / "judge/labels.json", labels)
    unit = "probability that the picture holds what the prompt names and nothing else"
    write_manifest(folder / "judge", unit, "train_judge.py", JUDGE)
