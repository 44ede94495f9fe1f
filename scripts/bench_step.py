#!/usr/bin/env python3
"""Times one LoRA Diffusion-DPO step in PyTorch (diffusers and PEFT) and in ortdpo, side by side.

    scripts/bench_step.py --ortdpo target/release/ortdpo --case tiny-sd=models/tiny-sd,16,16x16 \
        --case sd15=DIR,1,32x32 [--recompute none,norm-attention,block] [--checkpointing] [--steps 8] [--rounds 2] \
        [--threads 2] [--json FILE]
    scripts/bench_step.py --device cuda --compile --ortdpo target/release/ortdpo --case sd15=DIR,4,64x64 \
        --case sdxl=DIR,1,128x128

A case is NAME=PIPELINE_FOLDER,PAIRS,HxW (pairs per step, size of the latents). Both sides read the same ONNX
weights, take rank-8 adapters on to_q, to_k, to_v and to_out.0, and do whole steps on random inputs: prediction of
the policy with gradient, prediction of the reference without, loss, backward, clipping, AdamW, EMA reference. In
PyTorch the base is frozen and policy and reference are two adapters on it, switched, as diffusers' own LoRA DPO
script does; float32, eager. The two take turns, each in a process of its own, and the first two steps of every
process are left out: figures are the median of the remaining steps of all rounds, and the largest peak memory.

PyTorch's load time is that of building the model and filling in the weights; its imports are not counted. The floor
is PyTorch's count of the step's floating-point operations over the fastest rate of a 2048³ matrix product measured
here; what is computed again is not in it. `--recompute` takes ortdpo through several levels of recomputation, and
`--checkpointing` adds PyTorch with diffusers' gradient checkpointing, `--compile` PyTorch with `torch.compile`, which needs
more warm-up: its first steps compile.

With `--device cuda`, PyTorch keeps the base in bfloat16 and adapters in float32 under autocast, and ortdpo runs
`--ep cuda --fp16` and `--ep cuda --bf16` on folders that were exported with `--fp16`. The floor is that of a bfloat16 product of 8192³. Memory
is then the device's: what is in use on the device at most while the process runs, less what was in use before, so that
nothing else may run there. nvidia-smi tells it every 20 ms, or CUDA where nvidia-smi does not (in a MIG slice); where
neither does, it is `-`. PyTorch's is the most that its allocator reserved, and its context.

ortdpo's side is `ortdpo bench --model DIR --pairs N --latent HxW --rank 8 --steps K --threads T --format json`, which
prints `load_seconds`, `step_seconds` (a list), `peak_rss_mb` and `anonymous_mb`, with `--recompute LEVEL`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))

RANK = 8
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
BETA = 2000.0
EMA = 0.01
WARM_UP = 2
LEVELS = ["none", "norm-attention", "block"]
CHECKPOINTED = "torch, checkpointing"
PRECISIONS = {"cpu": [""], "cuda": ["--fp16", "--bf16"]}
COMPILED = "torch, compiled"
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    name: str
    model: Path
    pairs: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """From NAME=FOLDER,PAIRS,HxW."""
        name, _, rest = text.partition("=")
        try:
            folder, pairs, latent = rest.rsplit(",", 2)
            height, width = latent.split("x")
            return cls(name, Path(folder), int(pairs), int(height), int(width))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER,PAIRS,HxW") from None

    def __str__(self) -> str:
        return f"{self.name}={self.model},{self.pairs},{self.height}x{self.width}"


# --- PyTorch's side, in a process of its own ------------------------------------------------------------------------


def load_unet(folder: Path):
    """The frozen UNet with the weights of the ONNX file."""
    import torch
    from diffusers import UNet2DConditionModel

    from weights import load_weights

    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.device("meta"):  # no time for initial weights that are overwritten
        unet = UNet2DConditionModel.from_config(config)
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    load_weights(unet, folder / "unet" / "model.onnx")
    return unet


def add_adapters(unet) -> dict[str, list]:
    """Two LoRA adapters with small random factors; their parameters by adapter."""
    import torch
    from peft import LoraConfig

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights=False)
    parameters = {}
    for name in ("policy", "reference"):
        unet.add_adapter(config, adapter_name=name)
        parameters[name] = [p for n, p in unet.named_parameters() if f".{name}." in n]
    with torch.no_grad():
        for policy, reference in zip(parameters["policy"], parameters["reference"], strict=True):
            torch.nn.init.normal_(policy, std=0.01)
            reference.copy_(policy)
    return parameters


class Stepper:
    """Repeats a training step on fixed random inputs."""

    def __init__(self, case: Case, options: argparse.Namespace):
        import torch

        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.unet = load_unet(case.model)
        if self.on_gpu:
            self.unet = self.unet.to(self.device, torch.bfloat16)
        if options.checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.unet.train()  # diffusers checkpoints in training mode only; these networks have no dropout
        self.parameters = add_adapters(self.unet)
        for parameters in self.parameters.values():
            for parameter in parameters:
                parameter.data = parameter.data.to(self.device, torch.float32)
        self.optimizer = torch.optim.AdamW(self.parameters["policy"], lr=1e-4, weight_decay=0.01)
        config = self.unet.config
        self.noise = self.random(case.pairs, config.in_channels, case.height, case.width).repeat(2, 1, 1, 1)
        self.noised = torch.randn_like(self.noise)
        self.timesteps = torch.randint(1000, (case.pairs,)).repeat(2).to(self.device)
        length = text_length(case.model)
        self.embeddings = self.random(case.pairs, length, config.cross_attention_dim).repeat(2, 1, 1)
        self.added = None
        if config.addition_embed_type == "text_time":
            ids = 6 * config.addition_time_embed_dim
            pooled = self.random(2 * case.pairs, config.projection_class_embeddings_input_dim - ids)
            size = [8.0 * case.height, 8.0 * case.width]
            times = torch.tensor([[*size, 0.0, 0.0, *size]], device=self.device).repeat(2 * case.pairs, 1)
            self.added = {"text_embeds": pooled, "time_ids": times}
        # The adapters are switched on the module itself; what is called may be its compiled form.
        self.network = torch.compile(self.unet) if options.compile else self.unet

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def random(self, *shape: int):
        """Normal values on the device."""
        import torch

        return torch.randn(*shape).to(self.device)

    def error(self, name: str):
        """Per-sample errors of both halves, with one adapter on."""
        import torch

        self.unet.set_adapter(name)
        inputs = (self.noised, self.timesteps, self.embeddings)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
            predicted = self.network(*inputs, added_cond_kwargs=self.added, return_dict=False)[0]
        return (predicted.float() - self.noise).pow(2).mean(dim=(1, 2, 3)).chunk(2)

    def step(self) -> float:
        """One whole step; its loss."""
        import torch

        policy_w, policy_l = self.error("policy")
        with torch.no_grad():
            reference_w, reference_l = self.error("reference")
        margin = (reference_w - reference_l) - (policy_w - policy_l)
        loss = -torch.nn.functional.logsigmoid(0.5 * BETA * margin).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters["policy"], 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.parameters["reference"], self.parameters["policy"], EMA)
        if self.on_gpu:
            torch.cuda.synchronize()
        return loss.item()


def text_length(folder: Path) -> int:
    """Tokens of a caption: the text encoder's context, or CLIP's 77 where there is no text encoder."""
    config = folder / "text_encoder" / "config.json"
    return json.loads(config.read_text())["max_position_embeddings"] if config.is_file() else 77


def measure_torch(case: Case, options: argparse.Namespace) -> dict:
    """What `ortdpo bench` prints, for PyTorch; with the step's FLOPs and the matmul rate where asked for."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_step.py: --device cuda: PyTorch sees no GPU. Check its build and CUDA_VISIBLE_DEVICES.")
    torch.set_num_threads(options.threads)
    import diffusers  # noqa: F401  before the clock starts
    import peft  # noqa: F401

    import weights  # noqa: F401

    started = time.perf_counter()
    stepper = Stepper(case, options)
    report = {"load_seconds": time.perf_counter() - started, "step_seconds": []}
    for _ in range(options.steps):
        started = time.perf_counter()
        report["last_loss"] = stepper.step()
        report["step_seconds"].append(time.perf_counter() - started)
    report["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    if stepper.on_gpu and options.used_before is not None and (used := device_used()) is not None:
        context = used - torch.cuda.memory_reserved() / 1e6 - options.used_before
        report["peak_device_mb"] = torch.cuda.max_memory_reserved() / 1e6 + max(context, 0.0)
    if options.count_flops:
        with FlopCounterMode(display=False) as counter:
            stepper.step()
        report["flops"] = counter.get_total_flops()
        report["matmul_flops_per_second"] = matmul_rate(stepper.device)
    return report


def matmul_rate(device, repeats: int = 12) -> float:
    """The fastest of several matrix products, in FLOP/s: float32 on the CPU, bfloat16 on a GPU."""
    import torch

    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if on_gpu else None) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


# --- memory of the device -------------------------------------------------------------------------------------------


def smi_command() -> list[str]:
    """Asks nvidia-smi about the GPU that CUDA takes first."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    return ["nvidia-smi", "-i", gpu, "--query-gpu=mig.mode.current,memory.used", "--format=csv,noheader,nounits"]


def parse_used(row: str) -> float | None:
    """MB in use, from a row of nvidia-smi; it speaks of the whole GPU where a process has a MIG slice of it."""
    mode, _, mebibytes = row.partition(",")
    try:
        return None if mode.strip() == "Enabled" else float(mebibytes) * 2**20 / 1e6
    except ValueError:  # [N/A], [Insufficient Permissions], No devices were found
        return None


def used_by_smi() -> float | None:
    try:
        return parse_used(subprocess.run(smi_command(), capture_output=True, text=True, timeout=60).stdout.strip())
    except (OSError, subprocess.TimeoutExpired):
        return None


def used_by_cuda() -> float | None:
    """As CUDA tells it, which takes a context on the device."""
    import torch

    try:
        free, total = torch.cuda.mem_get_info()
    except (RuntimeError, AssertionError):  # no GPU, a driver that is too old, PyTorch without CUDA
        return None
    return (total - free) / 1e6


def device_used() -> float | None:
    """MB in use on the device by all processes, where that can be known."""
    used = used_by_smi()
    return used_by_cuda() if used is None else used


class DeviceMemory:
    """Watches what a process takes of the device, from before it starts until it has ended."""

    def __enter__(self) -> DeviceMemory:
        self.by_smi = used_by_smi() is not None
        self.before = device_used()
        self.most, self.done, self.smi = self.before, threading.Event(), None
        self.thread = threading.Thread(target=self._watch, daemon=True)
        if self.by_smi:
            command = [*smi_command(), f"--loop-ms={POLL_SECONDS * 1000:.0f}"]
            self.smi = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if self.before is not None:
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.done.set()
        if self.smi:
            self.smi.terminate()
        if self.before is not None:
            self.thread.join()
        if self.smi:
            self.smi.wait()

    def _readings(self) -> Iterator[float | None]:
        if self.smi:
            yield from map(parse_used, self.smi.stdout)
            return
        while not self.done.wait(POLL_SECONDS):
            yield used_by_cuda()

    def _watch(self) -> None:
        for used in self._readings():
            self.most = max(self.most, used or 0.0)

    @property
    def taken(self) -> float | None:
        """The most MB at a time; nothing where no change was seen, as on another GPU than the process's."""
        return self.most - self.before or None if self.before is not None else None


# --- the parent: takes turns and reports ----------------------------------------------------------------------------


def run_json(command: list[str], device: str) -> dict:
    """Run a command and parse the JSON object that its output ends in; with the device's peak memory, or None."""
    if device == "cpu":
        return parse_report(command, subprocess.run(command, stdout=subprocess.PIPE, text=True))
    # Numbers of GPUs then mean the same to CUDA as to nvidia-smi.
    environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ}
    with DeviceMemory() as memory:
        if "--worker" in command and memory.before is not None:
            command = [*command, "--used-before", str(memory.before)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    return {"peak_device_mb": memory.taken, **parse_report(command, done)}


def parse_report(command: list[str], done: subprocess.CompletedProcess) -> dict:
    if done.returncode != 0:
        sys.exit(f"bench_step.py: `{' '.join(command)}` failed with exit code {done.returncode}")
    return json.loads(done.stdout[done.stdout.index("{") :])


def measure(case: Case, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Every round's report of both sides."""
    reports: dict[str, list[dict]] = {}
    run = lambda side, command: reports.setdefault(side, []).append(run_json(command, options.device))  # noqa: E731
    for i in range(options.rounds):
        command = [sys.executable, __file__, "--worker", "--case", str(case), "--device", options.device]
        command += ["--steps", str(options.steps), "--threads", str(options.threads)]
        counting = ["--count-flops"] if i == 0 else []
        run("torch", command + counting)
        if options.compile:
            run(COMPILED, [*command, "--compile"])
        if options.checkpointing:
            run(CHECKPOINTED, [*command, "--checkpointing"])
        for level in options.recompute if options.ortdpo else []:
            command = [str(options.ortdpo), "bench", "--model", str(case.model), "--pairs", str(case.pairs)]
            command += ["--latent", f"{case.height}x{case.width}", "--rank", str(RANK), "--steps", str(options.steps)]
            command += ["--threads", str(options.threads), "--recompute", level, "--format", "json"]
            for precision in PRECISIONS[options.device]:
                given = ["--ep", "cuda", precision] if precision else []
                run(f"ortdpo {level} {precision.lstrip('-')}".rstrip(), command + given)
    return reports


def summarise(reports: list[dict]) -> dict:
    """Median steady step, median load time, largest memory: the device's, where one was watched, or else the host's."""
    steady = [seconds for report in reports for seconds in report["step_seconds"][WARM_UP:]]
    on_device = "peak_device_mb" in reports[0]
    peaks = [report["peak_device_mb" if on_device else "peak_rss_mb"] for report in reports]
    return {
        "step_seconds": statistics.median(steady),
        "load_seconds": statistics.median(report["load_seconds"] for report in reports),
        "peak_mb": max((peak for peak in peaks if peak), default=None),
        "anonymous_mb": None if on_device else max(report.get("anonymous_mb") or 0 for report in reports) or None,
        "steps": len(steady),
    }


def cell(value: float | None, width: int, digits: int = 0) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def describe(case: Case, reports: dict[str, list[dict]]) -> dict:
    """Print one case's table; its figures."""
    result = {side: summarise(of_side) for side, of_side in reports.items() if of_side}
    counted = reports["torch"][0]
    rate, flops = counted["matmul_flops_per_second"], counted["flops"]
    peak = "GPU MB" if "peak_device_mb" in counted else "peak MB"
    print(f"\n{case.name}: {case.pairs} pairs of {case.height}x{case.width} latents, rank {RANK}")
    print(f"  {'':28}{'s/step':>9}{'load s':>9}{peak:>10}{'no file':>10}{'steps':>7}{'time':>8}{'memory':>8}")
    for side, figures in result.items():
        both = figures["peak_mb"] and result["torch"]["peak_mb"]
        print(
            f"  {side:28}{figures['step_seconds']:9.3f}{figures['load_seconds']:9.1f}"
            f"{cell(figures['peak_mb'], 10)}{cell(figures['anonymous_mb'], 10)}{figures['steps']:7}"
            f"{figures['step_seconds'] / result['torch']['step_seconds']:8.2f}"
            f"{cell(figures['peak_mb'] / result['torch']['peak_mb'] if both else None, 8, 2)}"
        )
    result["floor_seconds"], result["flops"], result["matmul_flops_per_second"] = flops / rate, flops, rate
    print(f"  floor {flops / rate:.3f} s: {flops / 1e12:.3f} TFLOP at {rate / 1e9:.0f} GFLOP/s", flush=True)
    return result


def levels(text: str) -> list[str]:
    """Levels of recomputation, separated by commas."""
    found = text.split(",")
    unknown = [level for level in found if level not in LEVELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(LEVELS)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", required=True, type=Case.parse, metavar="NAME=FOLDER,PAIRS,HxW")
    parser.add_argument("--ortdpo", type=Path, help="the program; without it only PyTorch is measured")
    parser.add_argument(
        "--recompute", type=levels, default=["none"], metavar="LEVEL,…", help=f"ortdpo's levels: {', '.join(LEVELS)}"
    )
    parser.add_argument("--checkpointing", action="store_true", help="also PyTorch with gradient checkpointing")
    parser.add_argument("--compile", action="store_true", help="also PyTorch with torch.compile")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=8, help=f"steps of a process, the first {WARM_UP} included")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--count-flops", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--used-before", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}")
    if options.ortdpo and not options.ortdpo.is_file():
        parser.error(f"--ortdpo: {options.ortdpo}: there is no such file")

    if options.worker:
        warnings.simplefilter("ignore")
        print(json.dumps(measure_torch(options.case[0], options)))
        return
    figures = {case.name: describe(case, measure(case, options)) for case in options.case}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
