"""Pipelines with real weights: a diffusers folder, a name on the model hub, or a single-file checkpoint."""

from __future__ import annotations

import inspect
from pathlib import Path

from . import checkpoints
from .checkpoints import fail, first_sentence

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
SMALL = ("tokenizer", "tokenizer_2", "scheduler")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")

NO_CONFIG = "Without the model hub, say with --config DIR which diffusers folder has the configurations of such a model."


class LoadedPipeline:
    """Parts of a Stable Diffusion pipeline that diffusers reads, in float32 on the CPU.

    Networks are loaded when they are asked for, and belong to who asked: as long as no other is held, memory is that of
    one network. `.ckpt` files from before PyTorch 1.6 cannot be mapped, and are in memory whole while a network is loaded.
    """

    def __init__(self, model: str, config: str | None, variant: str | None = None):
        import diffusers
        import transformers

        # Of deprecated options that each uses of the other, and progress per component.
        transformers.logging.set_verbosity_error()
        diffusers.logging.set_verbosity_error()
        diffusers.logging.disable_progress_bar()
        self.model, self.config, self.variant = model, config, variant
        self.is_file = Path(model).suffix in checkpoints.SUFFIXES
        if self.is_file and variant:
            fail("--variant goes with a diffusers folder; a single-file checkpoint is one variant. Leave it out.")
        if self.is_file:
            self._open_file(Path(model))
        else:
            self._open_folder(Path(model))
        # What is missing here shows before anything is written.
        small = self._load(SMALL)
        self.tokenizers = [getattr(small, name, None) for name in ("tokenizer", "tokenizer_2")]
        self.noise_schedule = small.scheduler

    @property
    def is_xl(self) -> bool:
        return self.kind.__name__ == "StableDiffusionXLPipeline"

    def _open_file(self, file: Path) -> None:
        """A single file does not say what it is of; its tensors do, and published configurations, or `config`, the rest."""
        import diffusers

        if not file.is_file():
            fail(f"{file}: there is no such file. Is the path right?")
        is_xl = checkpoints.is_xl(file)
        self.kind = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
        if self.config:
            named = self._config_of(self.config)["_class_name"]
            if named != self.kind.__name__:
                fail(
                    f"{file}: is a checkpoint for {self.kind.__name__}, and --config {self.config} is of {named}. "
                    "Give the configurations of such a model."
                )

    def _open_folder(self, folder: Path) -> None:
        """The folder's model_index.json says what it is of."""
        import diffusers

        if self.config:
            fail("--config goes with a single-file checkpoint; a diffusers folder has its own. Leave it out.")
        if folder.is_file():
            fail(f"{folder}: is a file, and neither {' nor '.join(checkpoints.SUFFIXES)}. Give one of these, or a folder.")
        if (folder / "unet" / "model.onnx").exists():
            fail(f"{folder}: is exported to ONNX already. ortdpo takes it as it is.")
        is_path = self.model.startswith((".", "/", "~")) or self.model.count("/") > 1
        if is_path and not folder.exists():
            fail(f"{folder}: there is no such folder. Give a diffusers folder, or a name on the model hub.")
        named = self._config_of(self.model)["_class_name"]
        if named not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
            fail(f"{self.model}: is a {named}. Give a text-to-image Stable Diffusion 1.x, 2.x or XL (base) pipeline.")
        self.kind = getattr(diffusers, named)
        try:
            unet = diffusers.UNet2DConditionModel.load_config(self.model, subfolder="unet")
        except (OSError, ValueError) as error:
            self._fail(error)
        checkpoints.refuse_other_inputs(self.model, unet.get("in_channels", 4), unet.get("out_channels", 4))

    def _config_of(self, place: str) -> dict:
        from diffusers import DiffusionPipeline

        try:
            return DiffusionPipeline.load_config(place)
        except (OSError, ValueError) as error:
            self._fail(error)

    def _load(self, wanted: tuple[str, ...]):
        """The pipeline with the wanted components alone."""
        import torch
        from diffusers.loaders.single_file_utils import SingleFileComponentError

        known = inspect.signature(self.kind.__init__).parameters
        absent = {name: None for name in (*NETWORKS, *SMALL, *UNUSED) if name in known and name not in wanted}
        try:
            if self.is_file:
                more = {"config": self.config} if self.config else {}
                return self.kind.from_single_file(self.model, torch_dtype=torch.float32, **more, **absent)
            return self.kind.from_pretrained(self.model, torch_dtype=torch.float32, variant=self.variant, **absent)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SingleFileComponentError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        reason = first_sentence(error)
        if self.is_file and not self.config:
            remedy = NO_CONFIG
        elif self.is_file:
            remedy = f"Does {self.config} have the configurations of the model that this is a checkpoint of?"
        else:
            remedy = "Give a diffusers folder that is complete, or a name on the model hub."
            variants = sorted({file.suffixes[0][1:] for file in Path(self.model).glob("unet/*.*.safetensors")})
            if variants and not self.variant:
                remedy = f"It has weights of the variant {' and '.join(variants)}: add --variant {variants[0]}."
        fail(f"{self.model}: cannot be loaded ({reason}). {remedy}")

    def _network(self, name: str):
        network = getattr(self._load((name,)), name, None)
        if network is None:
            fail(f"{self.model}: has no {name}. Give a pipeline that is complete.")
        return network.eval().requires_grad_(False)

    def unet(self):
        return self._network("unet")

    def vae(self):
        return self._network("vae")

    def text_encoder(self, index: int):
        return self._network(("text_encoder", "text_encoder_2")[index])

    def tokenizer(self, index: int, folder: Path):
        return self.tokenizers[index]

    def scheduler(self):
        return self.noise_schedule
