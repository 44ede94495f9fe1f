"""The published reward models by name: how their weights are read, or made at random, and what their folders say.

`reduced` keeps the architecture and makes every number in it small: a network of some 100 kB for tests.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

import folder as out
import preprocessing
from imagereward import MEAN, STD, TOKENS, ImageReward
from tokenizer_files import save_bert, save_open_clip, save_siglip, train_sentencepiece
from towers import HfImage, HfText, OpenClipImage, OpenClipText, read_laion_head

REDUCED_SIZE = 28  # pixels of a side: four patches of 14


@dataclass
class Request:
    """What the command line asks for."""

    name: str
    output: Path
    checkpoint: str | None = None  # file, folder or hub id; None for random weights
    head: Path | None = None
    tokenizer: Path | None = None
    reduced: bool = False
    fp16: bool = False
    antialias: bool = True
    seed: int = 0


def spread(model: torch.nn.Module, gain: float = 3.0) -> torch.nn.Module:
    """Random weights whose outputs differ from input to input: initial ones leave every embedding nearly the same."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
            elif "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


# --- the models ----------------------------------------------------------------------------------------------------------

HF_CLIP = {  # published id, licence, reduced projection, scale in the manifest
    "clip-b32": ("openai/clip-vit-base-patch32", "MIT", "cosine"),
    "clip-l14": ("openai/clip-vit-large-patch14", "MIT", "cosine"),
    "pickscore": ("yuvalkirstain/PickScore_v1", "MIT", "exp(logit_scale) x cosine"),
}
OPEN_CLIP = {
    "clip-h14": ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "laion2b_s32b_b79k", "MIT"),
    "hpsv2": ("xswu/HPSv2: HPS_v2_compressed.pt", "2.0", "Apache-2.0"),
    "hpsv2.1": ("xswu/HPSv2: HPS_v2.1_compressed.pt", "2.1", "Apache-2.0"),
}
NAMES = [*HF_CLIP, *OPEN_CLIP, "siglip", "aesthetic-v1", "aesthetic-v2", "imagereward"]


def clip_config(name: str, reduced: bool, vocabulary: int = 49408, end: int = 49407):
    from transformers import CLIPConfig

    # Width, layers, heads of picture and prompt; patch; projection. Widths of the MLPs are four times these.
    vision, text, patch, projection = {
        "clip-b32": ((768, 12, 12), (512, 12, 8), 32, 512),
        "clip-l14": ((1024, 24, 16), (768, 12, 12), 14, 768),
        "pickscore": ((1280, 32, 16), (1024, 24, 16), 14, 1024),
    }[name]
    act = "gelu" if name == "pickscore" else "quick_gelu"  # LAION's ViT-H has the exact one

    def sizes(width: int, layers: int, heads: int) -> dict:
        return dict(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads, hidden_act=act,
        )

    vision, text = sizes(*vision) | dict(patch_size=patch, image_size=224), sizes(*text)
    if reduced:
        small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        vision, text, projection = {**vision, **small, "image_size": REDUCED_SIZE}, {**text, **small}, 32
    text |= dict(vocab_size=vocabulary, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


def hf_clip(request: Request, name: str):
    """transformers' CLIPModel with its tokenizer."""
    from transformers import CLIPModel, CLIPTokenizer

    if request.checkpoint:
        source = request.checkpoint
        processor = request.tokenizer or (HF_CLIP[name][0] if name != "pickscore" else "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
        return CLIPModel.from_pretrained(source).eval(), CLIPTokenizer.from_pretrained(processor)
    tokenizer = CLIPTokenizer.from_pretrained(request.tokenizer) if request.tokenizer else real_clip_tokenizer()
    tokenizer.model_max_length = 77
    torch.manual_seed(request.seed)
    end = tokenizer.eos_token_id
    return spread(CLIPModel(clip_config(name, request.reduced, len(tokenizer), end))).eval(), tokenizer


def real_clip_tokenizer():
    """OpenAI's vocabulary, which open_clip's package brings along."""
    import open_clip
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        save_open_clip(open_clip.get_tokenizer("ViT-H-14"), Path(scratch), 77)
        return CLIPTokenizer.from_pretrained(scratch)


def export_hf_clip(request: Request) -> None:
    model, tokenizer = hf_clip(request, request.name)
    source, licence, unit = HF_CLIP[request.name]
    size = model.config.vision_config.image_size
    write_towers(request, HfImage(model), HfText(model), size, example_ids(tokenizer, 77))
    tokenizer.save_pretrained(request.output / "tokenizer")
    scale = {"kind": "cosine"}
    if request.name == "pickscore":
        scale = {"kind": "logit", "logit_scale": float(model.logit_scale)}
    about = {"name": request.name, "version": "1", "unit": unit, "licence": licence, "source": source}
    dual_tower(request, about, preprocessing.transformers_clip(size), 77, tokenizer.pad_token_id, scale)


def open_clip_model(request: Request):
    """open_clip's ViT-H-14, which HPSv2 fine-tuned, and its tokenizer."""
    import open_clip

    torch.manual_seed(request.seed)
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    if request.tokenizer:
        tokenizer = simple_tokenizer(request.tokenizer)
    if request.reduced:
        config = dict(
            embed_dim=32,
            vision_cfg=dict(image_size=REDUCED_SIZE, layers=2, width=32, head_width=16, patch_size=14, mlp_ratio=2.0),
            text_cfg=dict(context_length=77, vocab_size=tokenizer.vocab_size, width=32, heads=2, layers=2, mlp_ratio=2.0),
        )
        return spread(open_clip.CLIP(**config)).eval(), tokenizer
    model = open_clip.create_model("ViT-H-14", pretrained=None)
    if request.checkpoint is None:
        return spread(model).eval(), tokenizer
    if Path(request.checkpoint).exists():
        state = torch.load(request.checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    else:
        model = open_clip.create_model("ViT-H-14", pretrained=request.checkpoint)
    return model.eval(), tokenizer


def simple_tokenizer(folder: Path):
    """open_clip's tokenizer over the merges of another CLIP tokenizer."""
    import gzip

    from open_clip.tokenizer import SimpleTokenizer

    with tempfile.NamedTemporaryFile(suffix=".gz") as file:
        file.write(gzip.compress((folder / "merges.txt").read_bytes().rstrip(b"\n")))
        file.flush()
        return SimpleTokenizer(bpe_path=file.name)


def export_open_clip(request: Request) -> None:
    model, tokenizer = open_clip_model(request)
    source, version, licence = OPEN_CLIP[request.name]
    size = model.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    ids = tokenizer(["a cat", "two dogs and a rocket"], context_length=77)
    # On CPUs ONNX Runtime 1.31.1 crashes in its NCHWc pass where half precision begins between these of open_clip's.
    write_towers(request, OpenClipImage(model), OpenClipText(model), size, ids, kept=("Conv", "Transpose"))
    save_open_clip(tokenizer, request.output / "tokenizer", 77)
    about = {"name": request.name, "version": version, "unit": "cosine", "licence": licence, "source": source}
    dual_tower(request, about, preprocessing.hpsv2(size, request.antialias), 77, 0, {"kind": "cosine"})


def siglip_model(request: Request):
    """transformers' SiglipModel and its slow tokenizer."""
    from transformers import SiglipConfig, SiglipModel, SiglipTokenizer

    if request.checkpoint:
        model = SiglipModel.from_pretrained(request.checkpoint)
        return model.eval(), SiglipTokenizer.from_pretrained(request.tokenizer or request.checkpoint)
    pieces = request.output / "tokenizer/spiece.model"
    pieces.parent.mkdir(parents=True, exist_ok=True)
    train_sentencepiece(pieces, SENTENCES)
    tokenizer = SiglipTokenizer(str(pieces))
    config = SiglipConfig()
    if request.reduced:
        small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        text = dict(small, vocab_size=len(tokenizer), eos_token_id=1, pad_token_id=1, projection_size=32)
        config = SiglipConfig(text_config=text, vision_config=dict(small, image_size=REDUCED_SIZE, patch_size=14))
    torch.manual_seed(request.seed)
    model = spread(SiglipModel(config), 8.0)
    model.logit_scale.data.fill_(4.7)
    model.logit_bias.data.fill_(-12.0)
    return model.eval(), tokenizer


SENTENCES = [
    "a small apple on a blue background", "two cats and a rocket under the yellow moon", "highly detailed digital art",
    "a portrait of an astronaut riding a horse in the style of the old masters", "an old house with a cactus by the sea",
    "during the night with stars, oil painting, soft light, sharp focus", "a photo of a dog wearing a red hat, 8k",
] * 20


def export_siglip(request: Request) -> None:
    model, tokenizer = siglip_model(request)
    size = model.config.vision_config.image_size
    ids = tokenizer(["a cat", "two dogs"], padding="max_length", max_length=64, return_tensors="pt").input_ids
    write_towers(request, HfImage(model), HfText(model), size, ids)
    save_siglip(tokenizer, request.output / "tokenizer", 64)
    scale = {"kind": "logit", "logit_scale": float(model.logit_scale), "logit_bias": float(model.logit_bias)}
    about = {
        "name": "siglip", "version": "1", "unit": "exp(logit_scale) x cosine + logit_bias", "licence": "Apache-2.0",
        "source": request.checkpoint or "google/siglip-base-patch16-224",
    }
    dual_tower(request, about, preprocessing.siglip(size), 64, tokenizer.pad_token_id, scale)


def export_aesthetic(request: Request) -> None:
    """LAION's heads on OpenAI's CLIP ViT-L/14, folded into one affine map."""
    model, _ = hf_clip(request, "clip-l14")
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size)
    out.export(HfImage(model), request.output / "image.onnx", {"pixel_values": pixels}, "image_embeds", request.fp16)
    width = model.config.projection_dim
    weight, bias = torch.randn(1, width) * 10, torch.tensor([5.0])
    if request.head:
        weight, bias = read_laion_head(request.head)
    head = {"weight": weight.float().contiguous(), "bias": bias.float().contiguous()}
    (request.output / "head.safetensors").write_bytes(save(head))
    version, source, licence = {
        "aesthetic-v1": ("1", "LAION-AI/aesthetic-predictor: sa_0_4_vit_l_14_linear.pth", "MIT"),
        "aesthetic-v2": ("2", "christophschuhmann/improved-aesthetic-predictor: sac+logos+ava1-l14-linearMSE.pth", "Apache-2.0"),
    }[request.name]
    about = {"name": request.name, "version": version, "unit": "rating, about 1 to 10", "licence": licence, "source": source}
    scorer = "  kind: image_head\n" + out.image_section(preprocessing.transformers_clip(size))
    out.write_manifest(request.output, about, scorer + "  head: {file: head.safetensors, l2_normalize: true}\n")


def imagereward_model(request: Request):
    """The network, and BERT's slow tokenizer after its files were written."""
    tokenizer = save_bert(request.output / "tokenizer", TOKENS, request.tokenizer)
    if request.checkpoint:
        return ImageReward.load(request.checkpoint), tokenizer
    torch.manual_seed(request.seed)
    if not request.reduced:
        return spread(ImageReward()).eval(), tokenizer
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    vision = dict(small, image_size=REDUCED_SIZE, patch_size=14)
    text = dict(small, vocab_size=len(tokenizer))
    return spread(ImageReward(vision, text, [16, 8, 8, 4, 1]), 4.0).eval(), tokenizer


def export_imagereward(request: Request) -> None:
    model, tokenizer = imagereward_model(request)
    size = model.vision.config.image_size
    words = tokenizer(["a cat", "two dogs"], padding="max_length", max_length=TOKENS, return_tensors="pt")
    inputs = {
        "pixel_values": torch.randn(2, 3, size, size), "input_ids": words.input_ids, "attention_mask": words.attention_mask,
    }
    out.export(model, request.output / "model.onnx", inputs, "score", request.fp16)
    about = {
        "name": "imagereward", "version": "1.0", "unit": "standardized reward", "licence": "Apache-2.0",
        "source": "zai-org/ImageReward: ImageReward.pt",
    }
    prompt = {"ids": "input_ids", "mask": "attention_mask", "tokenizer": "tokenizer", "length": TOKENS, "pad_id": 0}
    scorer = "  kind: cross_encoder\n" + out.image_section(preprocessing.torchvision_clip(size), "model.onnx", "score")
    scorer += f"  prompt: {out.flow(prompt)}\n  standardize: {out.flow({'mean': MEAN, 'std': STD})}\n"
    out.write_manifest(request.output, about, scorer)


# --- what they share -----------------------------------------------------------------------------------------------------


def example_ids(tokenizer, length: int) -> torch.Tensor:
    words = ["a cat", "two dogs and a rocket"]
    return tokenizer(words, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def write_towers(request: Request, image, text, size: int, ids: torch.Tensor, kept: tuple[str, ...] = ()) -> None:
    pixels = torch.randn(2, 3, size, size)
    out.export(image, request.output / "image.onnx", {"pixel_values": pixels}, "image_embeds", request.fp16, kept)
    out.export(text, request.output / "text.onnx", {"input_ids": ids}, "text_embeds", request.fp16, kept)


def dual_tower(request: Request, about: dict, steps: list[dict], length: int, pad_id: int, scale: dict) -> None:
    prompt = {"ids": "input_ids", "tokenizer": "tokenizer", "length": length, "pad_id": pad_id}
    scorer = "  kind: dual_tower\n" + out.image_section(steps)
    scorer += f"  text:\n    model: text.onnx\n    output: text_embeds\n    prompt: {out.flow(prompt)}\n"
    out.write_manifest(request.output, about, scorer + f"  scale: {out.flow(scale)}\n")


def export_reward(request: Request) -> None:
    request.output.mkdir(parents=True, exist_ok=True)
    if request.name in HF_CLIP:
        export_hf_clip(request)
    elif request.name in OPEN_CLIP:
        export_open_clip(request)
    elif request.name == "siglip":
        export_siglip(request)
    elif request.name == "imagereward":
        export_imagereward(request)
    else:
        export_aesthetic(request)
