"""Lightning's table of layers, without a column that nobody has filled."""

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary import get_formatted_model_size, get_human_readable_count
from rich import get_console
from rich.table import Table


class ParameterSummary(ModelSummary):
    """Layers and their parameters before training; operations only where Lightning has counted any.

    Args:
        max_depth: of the layers listed.
    """

    def __init__(self, max_depth: int = 1) -> None:
        super().__init__(max_depth)

    @staticmethod
    def summarize(  # type: ignore[override]
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int = 0,
        **_: Any,
    ) -> None:
        """Lightning's hook: prints the table."""
        columns = [(name, rows) for name, rows in summary_data if name != "FLOPs" or total_flops > 0]
        table = Table(header_style="bold magenta")
        for name, _rows in columns:
            table.add_column(name, justify="right" if name in ("Params", "FLOPs") else "left")
        for row in zip(*(rows for _name, rows in columns), strict=True):
            table.add_row(*row)
        console = get_console()
        console.print(table)
        trained, fixed = trainable_parameters, total_parameters - trainable_parameters
        console.print(
            f"{get_human_readable_count(trained)} trainable parameters, {get_human_readable_count(fixed)} fixed ones; "
            f"{get_formatted_model_size(model_size).strip()} MB"
        )
