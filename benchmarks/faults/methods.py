"""The five methods as small as they go: a quickstart each, with its callbacks, a run of about three seconds."""

_COMMON = ("--trainer.num_sanity_val_steps=0", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1")

METHODS: dict[str, tuple[str, ...]] = {
    "korigins": (
        *("-c", "korigins/quickstart", "--model.rfl=8", "--model.width=2", "--data.side=24", "--data.images=20"),
        *("--data.shapes_per_class=[1,1]", "--data.radius_range=[3,5]", "--data.batch_size=4"),
        *("--trainer.max_epochs=6", *_COMMON),
    ),
    "kmunet": (
        *("-c", "kmunet/quickstart", "--model.width=2", "--model.stages=1", "--data.images=16", "--data.side=16"),
        *("--data.batch_size=4", "--trainer.max_epochs=6", *_COMMON),
    ),
    "levels_of_experts": (
        *(
            "-c",
            "levels_of_experts/quickstart",
            "--model.width=4",
            "--model.experts=[2,1,map]",
            "--data.crop=[16,24]",
            "--data.steps_per_epoch=3",
        ),
        *("--trainer.max_epochs=6", *_COMMON),
    ),
    "master_key": (
        *("-c", "master_key/quickstart", "--model.model_args.depths=[1,1,1,1]", "--model.model_args.dims=[8,8,8,8]"),
        *("--data.train_images=16", "--data.val_images=8", "--data.batch_size=4", "--data.image_size=32"),
        *("--trainer.max_epochs=6", *_COMMON),
    ),
    "finola": (
        *("-c", "finola/quickstart", "--model.channels=8", "--model.image_size=16", "--data.image_size=16"),
        *("--model.encoder_width=4", "--model.decoder_width=4", "--data.crops=4", "--data.batch_size=16"),
        *("--trainer.max_epochs=6", *_COMMON),
    ),
}
