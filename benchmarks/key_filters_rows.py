"""Rows of the tables of key filters that are no fit: energies, fits, and the networks as their READMEs load them.

The studies `master_key/untouched`, `master_key/energy` and `master_key/fits` name these functions. `root` is the folder
that holds `masterkey`, `imagenet_sample_256`, `mobilenetv2_imagenet` and `mobilenet_edgetpu_imagenet`.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from framework.commands.filters import layer_filters, match_table
from framework.nn import BANKS, fit_key_filters, load_filters, make_bank, match_filters
from framework.nn.filters.key_filters import Method, published_fits

WEIGHTS = {
    "mobilenetv2": "mobilenetv2_imagenet/mobilenet_v2.fp16.safetensors",
    "mobilenet_edgetpu": "mobilenet_edgetpu_imagenet/mobilenet_edgetpu_100.fp16.safetensors",
}
#: what the READMEs beside the weights state, on the 936 original pictures: top-1 and top-5 of the untouched network,
#: top-1 with Method B, top-1 with Method B recalibrated
STATED = {"mobilenetv2": ("89.3", "98.4", "4.6", "41.7"), "mobilenet_edgetpu": ("90.8", "98.9", "68.3", "82.8")}
#: how the first row of a central crop is found where the margin is odd
ROUNDINGS: dict[str, Callable[[float], int]] = {"rounded": round, "cut": math.floor}


def untouched(network: str, root: str) -> Iterator[dict[str, object]]:
    """A network alone, loaded and fed as its README says, without this project's models and data.

    A picture is cropped to its central 224 x 224; (side - 224) / 2 is not always whole, and rounding it up or down is
    not said.
    """
    files = sorted(Path(root, "imagenet_sample_256").glob("*/*.jpg"))
    scored = [(label, file) for label, file in enumerate(files) if label % 15 or label > 945]
    for offset, whole in ROUNDINGS.items():
        net = readme_network(network, Path(root, WEIGHTS[network]))
        hits = [0, 0]
        for start in range(0, len(scored), 18):
            labels, paths = zip(*scored[start : start + 18], strict=True)
            x = torch.stack([central(path, whole) for path in paths])
            with torch.no_grad():
                right = net((x.float() - 127.5) / 127.5).topk(5, 1).indices == torch.tensor(labels)[:, None]
            hits = [hits[0] + int(right[:, 0].sum()), hits[1] + int(right.any(1).sum())]
        top1, top5 = (f"{100 * hit / len(scored):.2f}" for hit in hits)
        columns = ("stated_top1", "stated_top5", "stated_B", "stated_B_recalibrated")
        stated = dict(zip(columns, STATED[network], strict=True))
        yield {"offset": offset, "pictures": len(scored), "top1": top1, "top5": top5, **stated}


def readme_network(name: str, file: Path) -> nn.Module:
    """The lines of the README beside the weights."""
    if name == "mobilenetv2":
        net: Any = torchvision.models.mobilenet_v2()
        for conv in net.modules():
            if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
                conv.padding = (0, 0)
                conv.register_forward_pre_hook(
                    lambda _, args: (F.pad(args[0], (args[0].shape[3] % 2, 1, args[0].shape[2] % 2, 1)),)
                )
    else:
        net = timm.create_model("mobilenet_edgetpu_100", pad_type="same")
        net.blocks[0][0].bn1.act = nn.Identity()
    net.load_state_dict(load_file(file))
    return net.eval()


def central(path: Path, whole: Callable[[float], int], side: int = 224) -> torch.Tensor:
    """The middle of a picture, uint8 (3, side, side)."""
    image = Image.open(path).convert("RGB")
    left, top = (whole((length - side) / 2) for length in image.size)
    return torch.from_numpy(np.array(image.crop((left, top, left + side, top + side)))).permute(2, 0, 1)


def energy(network: str, root: str) -> Iterator[dict[str, object]]:
    """Explained energy per bank and kernel size: median over filters, and share per layer averaged over layers."""
    learned = load_filters(Path(root, "masterkey", "mk_filters.npz"))
    weights = layer_filters(str(Path(root, WEIGHTS[network])))
    for size in sorted({f.shape[-1] for f in weights.values()}):
        chosen = {name: f for name, f in weights.items() if f.shape[-1] == size}
        for bank in [*BANKS, "random-1", "random-2"]:
            rows = match_table(chosen, [bank], learned)
            banks = make_bank(bank, chosen, learned)
            per_filter = torch.cat([match_filters(f, banks[name]).energy for name, f in chosen.items()])
            share = torch.tensor([row["explained"] for row in rows]).nanmean()
            yield {
                "size": size,
                "filters": int((~per_filter.isnan()).sum()),
                "bank": bank,
                "median": f"{float(per_filter.nanmedian()):.3f}",
                "layers": f"{float(share):.3f}",
            }


def fits(method: Method, root: str) -> Iterator[dict[str, object]]:
    """Our fits beside the published parameters."""
    learned = load_filters(Path(root, "masterkey", "mk_filters.npz"))
    for fit, known in zip(fit_key_filters(learned, method), published_fits(method), strict=True):
        yield {
            "filter": fit.index,
            "sigma_x": f"{fit.sigma_x:.6f}",
            "sigma_y": f"{fit.sigma_y:.6f}",
            "alpha": "" if fit.alpha is None else f"{fit.alpha:.6f}",
            "published_sigma_x": f"{known.sigma_x:.4f}",
            "published_sigma_y": f"{known.sigma_y:.4f}",
            "published_alpha": "" if known.alpha is None else f"{known.alpha:.4f}",
            "objective": f"{fit.objective:.5f}",
        }
