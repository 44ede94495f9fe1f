"""The networks of the reward models as plain modules: tensors in, one tensor out, so that they can be exported one by one."""

import torch


class HfImage(torch.nn.Module):
    """Image tower of transformers' CLIPModel or SiglipModel."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model.get_image_features(pixel_values=pixel_values)


class HfText(torch.nn.Module):
    """Text tower of transformers' CLIPModel or SiglipModel. It takes no mask: CLIP's attention is causal and reads the embedding at
    the end token, before all padding; SigLIP was trained without one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model.get_text_features(input_ids=input_ids)


class OpenClipImage(torch.nn.Module):
    """Image tower of open_clip."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model.encode_image(pixel_values)


class OpenClipText(torch.nn.Module):
    """Text tower of open_clip."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model.encode_text(input_ids)


def fold(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [1, D] and bias [1] of linear layers one behind the other without activations, folded in double precision."""
    weight, bias = (t.double() for t in layers[0])
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight.double() @ weight, next_weight.double() @ bias + next_bias.double()
    return weight, bias


def read_laion_head(path) -> tuple[torch.Tensor, torch.Tensor]:
    """LAION's aesthetic heads: version 1 is one linear layer, version 2 five of them (`layers.0` to `layers.7`)."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "weight" in state:
        return fold([(state["weight"], state["bias"])])
    numbers = sorted({int(key.split(".")[1]) for key in state if key.startswith("layers.")})
    return fold([(state[f"layers.{n}.weight"], state[f"layers.{n}.bias"]) for n in numbers])
