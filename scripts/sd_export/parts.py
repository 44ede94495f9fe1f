"""The networks of a pipeline as modules with named inputs and outputs, as optimum names them.

Two differences from optimum's own export, both on purpose: the UNet takes one `timestep` per sample, and the VAE encoder gives
`latent_parameters` (mean and log-variance joined on the channels), so that a trainer can draw latents itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BATCH = 2  # samples of the inputs for tracing, so that no dimension is one by accident


@dataclass
class Part:
    """A network ready to be exported."""

    folder: str
    module: torch.nn.Module
    config: dict
    inputs: dict[str, torch.Tensor]
    outputs: list[str]
    axes: dict[str, dict[int, str]]


class TextEncoder(torch.nn.Module):
    """Pooled embedding, the last hidden states, and for SDXL every layer's."""

    def __init__(self, text_encoder, pooled: str, is_xl: bool):
        super().__init__()
        self.text_encoder, self.pooled, self.is_xl = text_encoder, pooled, is_xl

    def forward(self, input_ids):
        out = self.text_encoder(input_ids, output_hidden_states=self.is_xl)
        states = out.hidden_states if self.is_xl else ()
        return out.last_hidden_state, getattr(out, self.pooled), *states


class VaeEncoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, sample):
        return self.vae.encode(sample).latent_dist.parameters


class VaeDecoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample):
        return self.vae.decode(latent_sample).sample


def plain_config(model) -> dict:
    """A model's configuration without private keys."""
    import json

    config = dict(model.config) if hasattr(model.config, "items") else model.config.to_dict()
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    return {"_class_name": type(model).__name__, **json.loads(json.dumps(config, default=list))}


def unet(model, is_xl: bool) -> Part:
    """The UNet itself, not a module around it, so that its weights keep their names."""
    from diffusers.models.attention_processor import AttnProcessor

    model.set_attn_processor(AttnProcessor())  # plain MatMul and Softmax
    config, width = plain_config(model), model.config.cross_attention_dim
    inputs = {
        "sample": torch.randn(BATCH, model.config.in_channels, 16, 16),
        "timestep": torch.tensor([1, 999]),
        "encoder_hidden_states": torch.randn(BATCH, 7, width),
    }
    image = {0: "batch_size", 2: "height", 3: "width"}
    axes = {
        "sample": image,
        "timestep": {0: "batch_size"},
        "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"},
        "out_sample": image,
    }
    if is_xl:
        ids = 6
        pooled = model.config.projection_class_embeddings_input_dim - ids * model.config.addition_time_embed_dim
        inputs["text_embeds"] = torch.randn(BATCH, pooled)
        inputs["time_ids"] = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]] * BATCH)
        axes |= {"text_embeds": {0: "batch_size"}, "time_ids": {0: "batch_size"}}

        def forward(sample, timestep, encoder_hidden_states, text_embeds, time_ids):
            added = {"text_embeds": text_embeds, "time_ids": time_ids}
            call = type(model).forward
            return call(model, sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]

    else:

        def forward(sample, timestep, encoder_hidden_states):
            return type(model).forward(model, sample, timestep, encoder_hidden_states, return_dict=False)[0]

    model.forward = forward
    return Part("unet", model, config, inputs, ["out_sample"], axes)


def text_encoder(model, index: int, is_xl: bool) -> Part:
    """A text encoder; SDXL's second one gives its projection, the others CLIP's pooled output."""
    from transformers import CLIPTextModelWithProjection

    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
    pooled = "text_embeds" if isinstance(model, CLIPTextModelWithProjection) else "pooler_output"
    length = model.config.max_position_embeddings
    ids = torch.randint(0, model.config.vocab_size - 2, (BATCH, length))
    ids[:, length // 2 :] = model.config.vocab_size - 1
    outputs = ["last_hidden_state", pooled]
    if is_xl:
        outputs += [f"hidden_states.{layer}" for layer in range(model.config.num_hidden_layers + 1)]
    axes = {name: {0: "batch_size"} for name in ["input_ids", *outputs]}
    folder = "text_encoder" + ("_2" if index == 1 else "")
    return Part(folder, TextEncoder(model, pooled, is_xl), config, {"input_ids": ids}, outputs, axes)


def vae_encoder(model) -> Part:
    image = {0: "batch_size", 2: "height", 3: "width"}
    latent = {0: "batch_size", 2: "latent_height", 3: "latent_width"}
    pictures = torch.rand(BATCH, 3, 64, 64) * 2 - 1
    axes = {"sample": image, "latent_parameters": latent}
    return Part("vae_encoder", VaeEncoder(model), plain_config(model), {"sample": pictures}, ["latent_parameters"], axes)


def vae_decoder(model) -> Part:
    image = {0: "batch_size", 2: "height", 3: "width"}
    latent = {0: "batch_size", 2: "latent_height", 3: "latent_width"}
    latents = torch.randn(BATCH, model.config.latent_channels, 8, 8)
    axes = {"latent_sample": latent, "sample": image}
    return Part("vae_decoder", VaeDecoder(model), plain_config(model), {"latent_sample": latents}, ["sample"], axes)
