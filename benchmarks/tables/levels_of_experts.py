"""Tables of docs/levels_of_experts.md."""

import pandas as pd

from benchmarks.tables.common import markdown, provenance, read, table


def headline() -> str:
    """The README's figure."""
    loe = _loe_study().set_index(["image", "seed", "variant"])["best_psnr"].unstack()
    return (
        f"PSNR on six Kodak images: tiles over SIREN {(loe['fine_to_coarse'] - loe['siren']).mean():+.1f} dB, "
        f"Multi-Otsu over tiles {(loe['otsu_4'] - loe['fine_to_coarse']).mean():+.1f} dB, "
        f"over a SIREN of equal parameters {(loe['otsu_4'] - loe['siren_wide']).mean():+.1f} dB"
    )


@table
def loe_step() -> str:
    """Step time of every formulation of an expert network, as multiples of plain SIREN's."""
    frame = read("loe_step")
    sizes = list(frame["coordinates"].unique())
    rows = []
    for formulation, group in frame.groupby("formulation", sort=False):
        by_size = group.set_index("coordinates")
        seconds, ratio = by_size["seconds_median"], by_size["ratio_to_siren_median"]
        cells = [f"{float(seconds[n]):.3f} s ({float(ratio[n]):.2f} x)" if n in by_size.index else "-" for n in sizes]
        rows.append([str(formulation), *cells])
    return markdown(["formulation", *(f"{n} coordinates" for n in sizes)], rows) + provenance(frame)


@table
def loe_memory() -> str:
    """Peak memory of a step."""
    frame = read("loe_memory")
    columns = {"formulation": "formulation", "coordinates": "coordinates", "peak_mib": "peak above the start, MiB"}
    return markdown(list(columns.values()), frame[list(columns)].to_numpy().tolist()) + provenance(frame)


@table
def loe_variants() -> str:
    """PSNR of every variant over images and seeds."""
    frame = _loe_study()
    rows = []
    for variant, group in frame.groupby("variant", sort=False):
        best = group["best_psnr"]
        rows.append([str(variant), str(group["network_parameters"].iloc[0]),
                     f"{group['rate'].iloc[0]:g}", f"{best.mean():.2f}",
                     f"{best.min():.2f}", f"{best.max():.2f}", f"{group['psnr'].mean():.2f}",
                     f"{group['map_bits_per_pixel'].mean():.3f}", f"{group['seed'].nunique()}"])  # fmt: skip
    header = [
        "variant",
        "parameters",
        "rate",
        "best PSNR, mean",
        "lowest",
        "highest",
        "last PSNR, mean",
        "map, bits per pixel",
    ]
    return markdown([*header, "seeds"], rows) + provenance(read("loe_study"))


@table
def loe_differences() -> str:
    """Paired differences: the paper's claims first, then the controls."""
    frame = _loe_study().set_index(["image", "seed"])
    pairs = [
        ("fine_to_coarse", "siren"),
        ("otsu_4", "fine_to_coarse"),
        ("otsu_4", "equal_4"),
        ("otsu_4", "kmeans_4"),
        ("otsu_4", "otsu_1"),
        ("otsu_4", "otsu_2"),
        ("otsu_4", "otsu_3"),
        ("quad_tree", "siren"),
        ("class_input", "siren"),
        ("fine_to_coarse", "siren_wide"),
        ("otsu_4", "siren_wide"),
    ]
    rows = []
    for a, b in pairs:
        ours, other = (frame[frame["variant"] == v] for v in (a, b))
        best = (ours["best_psnr"] - other["best_psnr"]).dropna()
        last = (ours["psnr"] - other["psnr"]).dropna()
        rows.append([f"{a} - {b}", f"{best.mean():+.2f} ± {best.std():.2f}", f"{(best > 0).sum()} of {len(best)}",
                     f"{last.mean():+.2f} ± {last.std():.2f}", f"{(last > 0).sum()} of {len(last)}"])  # fmt: skip
    return markdown(["difference", "best PSNR, dB", "above 0", "last PSNR, dB", "above 0"], rows) + provenance(
        read("loe_study")
    )


@table
def loe_rates() -> str:
    """Mean best PSNR of every variant at every learning rate of the sweep, which has one seed."""
    frame = _loe_sweep()
    frame = frame[frame["seed"] == frame["seed"].min()]
    means = frame.pivot_table(index="variant", columns="rate", values="best_psnr", sort=False).sort_index(axis=1)
    rows = [[str(name), *(f"{value:.2f}" for value in row)] for name, row in means.iterrows()]
    return markdown(["variant", *(f"{rate:g}" for rate in means.columns)], rows) + provenance(read("loe_study"))


def _loe_sweep() -> pd.DataFrame:
    frame = read("loe_study")
    numbers = ["seed", "rate", "psnr", "best_psnr", "map_bits_per_pixel"]
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in numbers})


def _loe_study() -> pd.DataFrame:
    """The rows of every variant at its own best rate, chosen by the first seed's mean of the best PSNR over images."""
    frame = _loe_sweep()
    means = frame[frame["seed"] == frame["seed"].min()].groupby(["variant", "rate"])["best_psnr"].mean()
    best = {variant: means[variant].idxmax() for variant in frame["variant"].unique()}
    return frame[frame["rate"] == frame["variant"].map(best)]
