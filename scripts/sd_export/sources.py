"""Pipelines with real weights: a diffusers folder, a name on the model hub, or a single-file checkpoint."""

from __future__ import annotations

from pathlib import Path

SINGLE_FILES = (".safetensors", ".ckpt")


class LoadedPipeline:
    """Parts of a Stable Diffusion pipeline that diffusers reads, in float32 on the CPU."""

    def __init__(self, model: str, config: str | None):
        import torch
        from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

        common = dict(torch_dtype=torch.float32)
        if Path(model).suffix in SINGLE_FILES:
            if not Path(model).is_file():
                raise SystemExit(f"export_sd.py: {model}: there is no such file")
            # A single file does not say what it is a checkpoint of: diffusers looks at its tensors, and takes the rest
            # from the published configuration, or from `config`.
            more = {"config": config} if config else {}
            try:
                self.pipeline = StableDiffusionPipeline.from_single_file(model, **common, **more)
            except (ValueError, TypeError):
                self.pipeline = StableDiffusionXLPipeline.from_single_file(model, **common, **more)
        else:
            self.pipeline = DiffusionPipeline.from_pretrained(model, safety_checker=None, **common)
        if not isinstance(self.pipeline, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
            kind = type(self.pipeline).__name__
            raise SystemExit(f"export_sd.py: {model}: is a {kind}; export a Stable Diffusion 1.x, 2.x or XL pipeline")
        self.is_xl = isinstance(self.pipeline, StableDiffusionXLPipeline)
        for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
            module = getattr(self.pipeline, part, None)
            if module is not None:
                module.eval().requires_grad_(False)

    def _take(self, name: str):
        """A part, which then is the caller's alone and leaves memory with it."""
        part = getattr(self.pipeline, name)
        setattr(self.pipeline, name, None)
        return part

    def unet(self):
        return self._take("unet")

    def vae(self):
        return self._take("vae")

    def text_encoder(self, index: int):
        return self._take(("text_encoder", "text_encoder_2")[index])

    def tokenizer(self, index: int, folder: Path):
        return getattr(self.pipeline, ("tokenizer", "tokenizer_2")[index])

    def scheduler(self):
        return self.pipeline.scheduler
