"""ImageReward v1.0 (Xu et al. 2023) put together from transformers' parts: BLIP's ViT-L/16, its BERT with cross attention to
the picture, and five linear layers on the first token.

`ImageReward.load` reads the published checkpoint, whose names are those of BLIP's first code.
"""

import torch
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35

VISION = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224, patch_size=16)
TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=30524)
HEAD = [1024, 128, 64, 16, 1]

RENAMED = [  # BLIP's first code, transformers
    ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"), ("blocks.", "encoder.layers."), ("attn.qkv", "self_attn.qkv"),
    ("attn.proj", "self_attn.projection"), ("norm1", "layer_norm1"), ("norm2", "layer_norm2"),
]


class ImageReward(torch.nn.Module):
    """Raw scores [N, 1]; published ones are (raw - MEAN) / STD."""

    def __init__(self, vision: dict | None = None, text: dict | None = None, head: list[int] | None = None):
        super().__init__()
        vision, text = {**VISION, **(vision or {})}, {**TEXT, **(text or {})}
        # Initial weights are for models with random ones; the default range leaves the picture without any influence.
        self.vision = BlipVisionModel(BlipVisionConfig(**vision, layer_norm_eps=1e-6, initializer_range=0.02))
        self.text = BlipTextModel(
            BlipTextConfig(**text, encoder_hidden_size=vision["hidden_size"], layer_norm_eps=1e-12, is_decoder=True),
            add_pooling_layer=False,
        )
        widths = [text["hidden_size"], *(head or HEAD)]
        self.head = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:])))

    def forward(self, pixel_values, input_ids, attention_mask):
        picture = self.vision(pixel_values).last_hidden_state
        everywhere = torch.ones(picture.shape[:2], dtype=torch.long)
        words = self.text(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=picture,
            encoder_attention_mask=everywhere, is_decoder=False,
        )
        return self.head(words.last_hidden_state[:, 0])

    @classmethod
    def load(cls, path) -> "ImageReward":
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = cls()
        vision = {}
        for name, value in state.items():
            if name.startswith("blip.visual_encoder."):
                name = name.removeprefix("blip.visual_encoder.")
                for theirs, ours in RENAMED:
                    name = name.replace(theirs, ours)
                if name.startswith("norm."):
                    name = f"post_layernorm.{name.removeprefix('norm.')}"
                vision[name] = value
        prefix = "blip.text_encoder."
        text = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        text.pop("embeddings.position_ids", None)
        model.vision.load_state_dict(vision)
        model.text.load_state_dict(text)
        for layer, number in zip(model.head, (0, 2, 4, 6, 7)):  # dropouts take the numbers between
            layer.load_state_dict({key: state[f"mlp.layers.{number}.{key}"] for key in ("weight", "bias")})
        return model.eval()
