"""The KM-UNet quickstart shrunk to about a second."""

TINY_KMUNET = [
    "-c",
    "kmunet/quickstart",
    "--model.width=2",
    "--model.stages=1",
    "--model.max_grid_size=20",
    "--data.images=16",
    "--data.side=16",
    "--data.batch_size=8",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
]
