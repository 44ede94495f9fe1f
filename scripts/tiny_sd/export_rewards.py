"""Writes models/tiny-rewards: the reward in the layout of `optimum-cli export onnx` for CLIP, and the judge.

Both take `pixel_values`, float [N, 3, 64, 64] in [-1, 1]. The judge's outputs are logits; `labels.json` names them.
"""

import json
from pathlib import Path

import torch

from export import export_part, save_tokenizer, write_json
from tokenizer import encode
from train_judge import load_judge
from train_reward import load_reward
from world import COLOUR_NAMES, NAMES, all_scenes


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
    labels = {
        "first": NAMES, "second": [*NAMES, "none"], "background": COLOUR_NAMES, "junk": ["clean", "junk"],
    }
    export_part(
        folder / "judge", load_judge(work), {"model_type": "tiny-judge", "image_size": 64},
        {"pixel_values": pictures}, list(labels),
    )
    write_json(folder / "judge/labels.json", labels)
