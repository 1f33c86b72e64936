"""The table of results/README.md: what every CSV is, and how it was made."""

from benchmarks.tables.common import RESULTS, markdown, read, table

FILES = {
    "faults_accepted": "fuzzed inputs that were accepted: what was otherwise in each",
    "faults": "kills, signals, disks and fuzzed inputs: what became of each",
    "mutants": "lines of the code changed one at a time: which changes the tests notice",
    "export": "exported forms of the quickstart checkpoints: difference, bytes, time, memory, score",
    "finola_linear_codes": "DCT and PCA with as many floats as the FINOLA latents",
    "finola_long": "FINOLA and a repeated vector after 6000 steps, 32 px",
    "finola_masked": "masked FINOLA: linear probe and PSNR beside a random encoder",
    "finola_reconstruction": "FINOLA and its controls after 1500 steps, 32 px",
    "finola_speed": "time and memory of the rollout beside its bare matrix products",
    "fold_korigins": "K-Origins folded into a plain convolution: error and time",
    "kan_conv_cpu": "spline convolutions beside the plain one: time and memory",
    "key_filters_energy": "energy of two networks' depthwise filters that each bank explains",
    "key_filters_fits": "scales fitted to the eight key filters beside the published ones",
    "key_filters_replacement": "accuracy with every bank in place of the depthwise filters",
    "key_filters_speed": "time of the fits and of the scale-space layers",
    "key_filters_untouched": "accuracy of the two networks as their READMEs load them",
    "kmunet_16bit": "nuclei of 16 bits: normalised, raw, behind K-Origins",
    "kmunet_isbi": "KM-UNet and a U-Net of equal parameters on membranes",
    "kmunet_rates": "learning rates of KM-UNet and U-Net",
    "kmunet_study": "KM-UNet, extended and pruned, beside U-Nets on nuclei",
    "korigins_colours": "several intensities and colours, squares and circles (E4), with the layer and without",
    "korigins_contrast": "IoU over contrast and noise (E3), with the layer and without, beside limits",
    "korigins_one_origin": "one origin between two intensities: where it ends",
    "korigins_e5": "parameter efficiency (E5) in small; nothing reaches the goal",
    "korigins_epochs": "epochs to 0.99 IoU with K-Origins, without, with controls (E1, E2)",
    "korigins_how_many": "number of origins on squares",
    "korigins_how_many_real": "number of origins on 16-bit nuclei",
    "korigins_microscopy": "16-bit nuclei: K-Origins, without, BatchNorm, KM-UNet, U-Net; raw, normalised, exposed",
    "korigins_microscopy_dsb": "the same on the nuclei of DSB 2018",
    "korigins_microscopy_floor": "nuclei by Multi-Otsu and a watershed",
    "layers": "every layer under every habit of torch code: yes, or what it says",
    "launches": "launches of one training step of every method, in both forms",
    "memory": "bytes of a training step of the full recipes, counted, and what a card of 24 GB needs",
    "loe_memory": "peak memory of a step of an expert network",
    "loe_step": "time of a step of an expert network in every formulation",
    "loe_study": "PSNR of every variant and control on six Kodak images at 96 x 64",
    "pictures": "what every figure of the pages was made by, and hashes that tell when it is stale",
    "scale": "operations, bytes and hours of the full recipes, counted and not measured",
    "tiles": "prediction in tiles: seam, speed and memory",
    "second_derivatives_speed": "first-order time of the layers before and after second derivatives",
    "spline_forms": "spline layers in their forms for inference: time, bytes, bound, error, Dice",
    "spline_rank": "edges that share two shapes from the start of training: Dice on nuclei",
    "squares_generation": "images per second that the squares are generated with",
}


@table
def results() -> str:
    """One line per CSV; a file without a description is an error."""
    rows = []
    for path in sorted(RESULTS.glob("*.csv")):
        if path.stem not in FILES:
            raise KeyError(f"results/{path.name} has no line in FILES of benchmarks/tables/files.py: say what it is")
        frame = read(path.stem)
        column = "command" if "command" in frame else "made_by"
        commands = "; ".join(f"`{command}`" for command in frame[column].unique())
        rows.append([path.name, FILES[path.stem], str(len(frame)), commands, "; ".join(frame["hardware"].unique())])
    return markdown(["file", "what", "rows", "command", "hardware"], rows)
