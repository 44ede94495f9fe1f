#!/usr/bin/env python3
"""Repeats a run of `ortdpo train --record DIR` in PyTorch and compares the losses, step by step.

    ortdpo train --config FILE --output RUN --record RECORD
    scripts/check_trajectory.py RUN RECORD [--tolerance 1e-3] [--checkpointing]

The same weights (read from the ONNX file), the same adapter before the first step, the same noised latents, timesteps,
embeddings, weights and labels go through diffusers' UNet with PEFT's adapter, torch's AdamW and clipping, and the
reference update of the run's configuration; learning rates are those of the log. Nothing else is used: what the policy became
comes from PyTorch's own steps. For `objective.kind: dpo` with a LoRA and `reference.update` frozen or ema (no anchor, or pull).

The difference of a step is |loss - PyTorch's| as a share of PyTorch's loss. Exit code 1 where one is above the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from peft import LoraConfig, set_peft_model_state_dict  # noqa: E402
from torch.nn.functional import logsigmoid  # noqa: E402

from bench_step import load_unet  # noqa: E402


def refuse(what: str) -> None:
    sys.exit(f"check_trajectory.py: {what}")


class Adapters:
    """The policy and what it is compared with, as two PEFT adapters on one UNet."""

    def __init__(self, unet, config: dict, initial: Path):
        lora = config["adapter"]
        alpha = lora["alpha"] or lora["rank"]
        state = safetensors.torch.load_file(initial)
        state = {key.split(".", 1)[1]: value for key, value in state.items()}
        peft = LoraConfig(r=lora["rank"], lora_alpha=alpha, target_modules=lora["targets"])
        self.unet, self.parameters = unet, {}
        for name in ("policy", "reference"):
            unet.add_adapter(peft, adapter_name=name)
            set_peft_model_state_dict(unet, state, adapter_name=name)
            self.parameters[name] = [p for n, p in unet.named_parameters() if f".{name}." in n]
        if sum(p.numel() for p in self.parameters["policy"]) != sum(v.numel() for v in state.values()):
            refuse("the record's adapter has other modules than PEFT's")
        self.initial = [p.detach().clone() for p in self.parameters["policy"]]

    def predict(self, name: str, part: dict[str, torch.Tensor]) -> torch.Tensor:
        """One adapter's prediction for a part of a batch."""
        self.unet.set_adapter(name)
        added = None
        if "text_embeds" in part:
            added = {"text_embeds": part["text_embeds"], "time_ids": part["time_ids"]}
        arguments = (part["sample"], part["timestep"].long(), part["encoder_hidden_states"])
        return self.unet(*arguments, added_cond_kwargs=added, return_dict=False)[0]

    def errors(self, name: str, part: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared errors, one a sample."""
        return (self.predict(name, part) - part["target"]).pow(2).mean(dim=(1, 2, 3))

    @torch.no_grad()
    def move_reference(self, reference: dict, step: int) -> None:
        """What the configuration says happens to the reference after a step."""
        if reference["update"] == "frozen" or step % reference["every"]:
            return
        alpha, anchor = float(reference["alpha"]), reference["anchor"]
        pull = 0.0
        if anchor is not None and anchor["kind"] == "pull":
            strength = float(anchor["strength"])
            pull = alpha * strength / (1 - strength)
        triples = zip(self.parameters["reference"], self.parameters["policy"], self.initial, strict=True)
        for moving, policy, initial in triples:
            moving.lerp_(policy, alpha)
            moving.lerp_(initial, pull / (1 + pull))


def dpo_loss(config: dict, adapters: Adapters, part: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weighted mean of -log sigmoid over a part's pairs, preferred samples first."""
    with torch.no_grad():
        reference_w, reference_l = adapters.errors("reference", part).chunk(2)
    policy_w, policy_l = adapters.errors("policy", part).chunk(2)
    margin = (reference_w - reference_l) - (policy_w - policy_l)
    logit = 0.5 * float(config["objective"]["beta"]) * part["reward_scale"] * margin
    label = part["label"]
    losses = -(label * logsigmoid(logit) + (1 - label) * logsigmoid(-logit))
    return (losses * part["weight"]).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("record", type=Path, help="what it recorded")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing: less memory")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)

    config = yaml.safe_load((options.run / "config.yaml").read_text())
    if config["objective"]["kind"] != "dpo" or config["adapter"]["kind"] != "lora":
        refuse("only LoRA runs of objective.kind dpo are repeated")
    reference = config["reference"]
    anchor = reference["anchor"]
    if reference["update"] not in ("frozen", "ema") or (anchor is not None and anchor["kind"] not in ("none", "pull")):
        refuse("only a frozen reference is repeated, and one that follows by ema, with the pull anchor or without")
    unet = load_unet(Path(config["model"]))
    if options.checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    adapters = Adapters(unet, config, options.record / "initial.safetensors")
    settings = config["optimizer"]
    policy = adapters.parameters["policy"]
    optimizer = torch.optim.AdamW(
        policy,
        lr=float(settings["lr"]),
        betas=tuple(map(float, settings["betas"])),
        eps=float(settings["eps"]),
        weight_decay=float(settings["weight_decay"]),
    )
    metrics = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text().splitlines()]
    recorded = {entry["step"]: entry for entry in metrics if "loss" in entry}
    worst = 0.0
    for step, entry in sorted(recorded.items()):
        parts = sorted(options.record.glob(f"step-{step:06}-part-*.safetensors"))
        optimizer.param_groups[0]["lr"] = entry["lr"]
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for path in parts:
            loss = dpo_loss(config, adapters, safetensors.torch.load_file(path)) / len(parts)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(policy, float(settings["clip_norm"] or "inf")).item()
        optimizer.step()
        adapters.move_reference(config["reference"], step)
        difference = abs(total - entry["loss"]) / abs(total)
        worst = max(worst, difference)
        print(
            f"step {step:4}  loss {entry['loss']:.6f}  PyTorch {total:.6f}  difference {difference:.1e}"
            f"  gradient {entry['grad_norm']:.4e}  PyTorch {norm:.4e}",
            flush=True,
        )
    print(f"{len(recorded)} steps, largest difference {worst:.1e} (tolerance {options.tolerance:.0e})")
    sys.exit(worst > options.tolerance)


if __name__ == "__main__":
    main()
