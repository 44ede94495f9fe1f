"""Loads what ortdpo trained with diffusers and PEFT, and checks that nothing is missing or left over.

Of an adapter every tensor must be in the model after loading, every adapted module's scale must be alpha/rank, and the
model must compute something else with the adapter than without. The folder of a run that trained whole weights must load
as a UNet with every weight, those that were not trained being the model's.

Usage: python scripts/check_adapter.py ADAPTER.safetensors UNET_CONFIG.json
       python scripts/check_adapter.py RUN_FOLDER UNET_FOLDER
"""

import json
import sys
import warnings
from pathlib import Path

import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from peft.utils import get_peft_model_state_dict

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))

PREFIX = "unet."


def load(unet, path):
    """Load the adapter as `load_lora_weights` of a pipeline does; any warning about keys is an error."""
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        path.parent, weight_name=path.name, return_lora_metadata=True
    )
    assert not alphas, "scales are in the metadata, not in tensors"
    assert metadata, "the file holds no lora_adapter_metadata"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StableDiffusionPipeline.load_lora_into_unet(
            state, network_alphas=None, unet=unet, adapter_name="trained", metadata=metadata
        )
    return {key.removeprefix(PREFIX): value for key, value in metadata.items()}


def predict(unet):
    torch.manual_seed(0)
    size, config = unet.config.sample_size, unet.config
    sample = torch.randn(1, config.in_channels, size, size)
    text = torch.randn(1, 5, config.cross_attention_dim)
    with torch.no_grad():
        return unet(sample, torch.tensor([500]), text).sample


def check_full(run, model):
    """A run that trained whole weights, or some of them, of the exported UNet in the folder `model`."""
    from weights import load_weights

    unet, report = UNet2DConditionModel.from_pretrained(run, output_loading_info=True)
    assert not any(report.values()), report
    original = UNet2DConditionModel.from_config(json.loads((model / "config.json").read_text()))
    load_weights(original, model / "model.onnx")
    before = original.state_dict()
    changed = [key for key, value in unet.state_dict().items() if not torch.equal(value, before[key])]
    assert changed, "nothing was trained"
    difference = (predict(unet.eval()) - predict(original.eval())).abs().max().item()
    assert difference > 0
    print(f"{run}: {len(before)} weights, {len(changed)} trained, output changes by up to {difference:.3g}")


def main(adapter, config):
    logging.set_verbosity_error()
    if adapter.is_dir():
        return check_full(adapter, config)
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(json.loads(config.read_text())).eval()
    before = predict(unet)
    metadata = load(unet, adapter)

    written = {key.removeprefix(PREFIX): value for key, value in safetensors.torch.load_file(adapter).items()}
    loaded = get_peft_model_state_dict(unet, adapter_name="trained")
    assert written.keys() == loaded.keys(), written.keys() ^ loaded.keys()
    for key, value in written.items():
        assert torch.equal(value.float(), loaded[key].float()), key

    scales = {module.scaling["trained"] for module in unet.modules() if hasattr(module, "scaling")}
    assert scales == {metadata["lora_alpha"] / metadata["r"]}, scales
    difference = (predict(unet) - before).abs().max().item()
    b_is_zero = all(not value.any() for key, value in written.items() if "lora_B" in key)
    assert (difference == 0) == b_is_zero, difference
    print(f"{adapter}: {len(written)} tensors, scale {scales.pop():g}, output changes by up to {difference:.3g}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
