"""The preprocessing of the published reward models as ortdpo's steps, and as the original code does it."""

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
NORMALIZE = {"step": "normalize_v1", "mean": CLIP_MEAN, "std": CLIP_STD}
TO_FLOAT = {"step": "to_unit_float_v1"}


def transformers_clip(size: int) -> list[dict]:
    """CLIPImageProcessor: Pillow's bicubic, the crop's odd rest rounded down."""
    resize = {"step": "pillow_resize_shortest_v1", "size": size, "filter": "bicubic"}
    return [resize, {"step": "center_crop_transformers_v1", "size": size}, TO_FLOAT, NORMALIZE]


def torchvision_clip(size: int) -> list[dict]:
    """torchvision's Resize and CenterCrop on a Pillow image: open_clip, ImageReward."""
    resize = {"step": "pillow_resize_shortest_v1", "size": size, "filter": "bicubic"}
    return [resize, {"step": "center_crop_torchvision_v1", "size": size}, TO_FLOAT, NORMALIZE]


def hpsv2(size: int, antialias: bool) -> list[dict]:
    """HPSv2's own: the longest side, on the float tensor, black to the square."""
    step = "torch_resize_longest_antialiased_v1" if antialias else "torch_resize_longest_v1"
    return [TO_FLOAT, {"step": step, "size": size}, NORMALIZE]


def siglip(size: int) -> list[dict]:
    """SiglipImageProcessor: both sides, whatever the proportions."""
    resize = {"step": "pillow_resize_exact_v1", "height": size, "width": size, "filter": "bicubic"}
    half = [0.5, 0.5, 0.5]
    return [resize, TO_FLOAT, {"step": "normalize_v1", "mean": half, "std": half}]
