"""Tables of docs/finola.md."""

import pandas as pd

from benchmarks.tables.common import markdown, provenance, read, spread, table


def headline() -> str:
    """The README's figure."""
    frame = _with_codes("finola_reconstruction").query("floats == '128' and M in ('', '1')")
    psnr = pd.to_numeric(frame["psnr"]).groupby(frame["method"]).mean()
    steps = next(value for value in frame["steps"] if value)
    return (
        f"PSNR at 128 floats, 32 px, {steps} steps: {psnr['finola']:.1f} dB; repeated vector with positions "
        f"{psnr['repeat-q + positions']:.1f}; PCA {psnr['PCA']:.1f}; DCT {psnr['DCT, top-N']:.1f}"
    )


@table
def finola_speed() -> str:
    """The rollout as multiples of its bare matrix products."""
    frame = read("finola_speed")
    rows = []
    for (channels, method), group in frame.groupby(["C", "method"], sort=False):
        cells = {row["pass"]: row for _, row in group.iterrows()}
        row = [str(channels), str(method), cells["forward"]["M"]]
        for name in ("forward", "both"):
            found = cells.get(name)
            row += ["", "", ""] if found is None else [found["ms"], found["multiple"], found["peak_mib"]]
        rows.append(row)
    header = ["C", "method", "M", "forward, ms", "x products", "peak MiB",
              "forward + backward, ms", "x 3 products", "peak MiB"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)


@table
def finola_reconstruction() -> str:
    """PSNR on held-out pictures by floats and method; learned methods over seeds."""
    return _finola("finola_reconstruction")


@table
def finola_long() -> str:
    """The same after longer training."""
    return _finola("finola_long")


def _with_codes(name: str) -> pd.DataFrame:
    """The rows of a study beside the linear codes' with equally many floats."""
    learned = read(name)
    learned["floats"] = (pd.to_numeric(learned["C"]) * pd.to_numeric(learned["M"])).astype(str)
    codes = read("finola_linear_codes")
    codes = codes[codes["floats"].isin(learned["floats"])]
    return pd.concat([codes, learned]).fillna("")


def _finola(name: str) -> str:
    frame = _with_codes(name)
    rows = []
    for (floats, method, channels, paths), group in frame.groupby(["floats", "method", "C", "M"], sort=False):
        row = [str(floats), str(method), str(channels), str(paths)]
        row += [spread(group[column], 2) for column in ("psnr", "psnr_pooled", "ssim")]
        rows.append([*row, spread(group["kodak_psnr"], 2), group["parameters"].iloc[0], str(len(group))])
    rows.sort(key=lambda row: (int(row[0]), bool(row[2])))
    header = ["floats (C M)", "method", "C", "M", "PSNR", "PSNR of mean MSE", "SSIM", "Kodak PSNR", "parameters",
              "seeds"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)


@table
def finola_masked() -> str:
    """Linear probe and masked PSNR by kind of pre-training."""
    frame = read("finola_masked")
    rows = []
    for mode, group in frame.groupby("pretraining", sort=False):
        name = "random encoder" if mode == "none" else f"{mode}-wise"
        rows.append([name, group["steps"].iloc[0], spread(group["probe_accuracy"]),
                     spread(group["masked_psnr"], 2), str(len(group))])  # fmt: skip
    header = ["pre-training", "steps", "probe accuracy", "PSNR of masked pixels", "seeds"]
    return markdown(header, rows) + provenance(frame)
