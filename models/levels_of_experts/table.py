"""`images.csv`, the table of all images of a run."""

from collections.abc import Mapping

import pandas as pd
from lightning.pytorch import Trainer
from torch import Tensor

from framework.distributed import run_folder
from framework.outputs import free_path, optional_output
from models.levels_of_experts.images import Images


def image_table(
    images: Images,
    psnr: Tensor,
    progress: Mapping[str, Tensor],
    parameters: int,
    map_costs: list[dict[str, float]] | None,
) -> pd.DataFrame:
    """One row per image: its PSNR, the best one and when, what became of it, and what its weights and map cost.

    Args:
        images: of the run.
        psnr: (images,) float64, dB.
        progress: of all images, as `fresh_progress` names it.
        parameters: of one network.
        map_costs: bits per pixel of every image's class map, as `map_bits` states them; None without maps.
    """
    table = pd.DataFrame(
        {
            "image": images.names,
            "height": [size[0] for size in images.sizes],
            "width": [size[1] for size in images.sizes],
            "psnr": psnr.cpu().numpy(),
            "best_psnr": progress["best_psnr"].numpy(),
            "best_step": progress["best_step"].numpy(),
            "diverged_step": [step if step >= 0 else "" for step in progress["diverged_step"].tolist()],
            "learning_rate_factor": progress["learning_rate_factor"].numpy(),
            "parameters": parameters,
            "parameter_bits_per_pixel": [32 * parameters / (height * width) for height, width in images.sizes],
        }
    )
    if map_costs is not None:
        table = pd.concat([table, pd.DataFrame(map_costs).add_prefix("map_bits_per_pixel_")], axis=1)
    return table.round(4)


def write_table(trainer: Trainer, table: pd.DataFrame) -> None:
    """Writes `images.csv` into the run folder, if there is one; beside a file that is there. Rank 0 only."""
    if not trainer.loggers or getattr(trainer, "fast_dev_run", False):
        return
    path = free_path(run_folder(trainer) / "images.csv")
    with optional_output(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
