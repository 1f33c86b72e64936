"""Tables of docs/master_key.md."""

import pandas as pd

from benchmarks.tables.common import markdown, provenance, read, spread, table

# the order of a table's rows; random banks come last
_BANKS = ["original", "learned", "A", "B", "C1", "C2", "D1", "D2", "k-lines"]
_BANKS += ["sigma-network", "sigma-layer", "sigma-filter"]


def headline() -> str:
    """The README's figure."""
    filters = _replacement().query("network == 'mobilenetv2'")
    # random, random-1, ... are one bank with several seeds
    bank = filters["bank"].str.replace(r"-\d+$", "", regex=True)
    top1 = pd.to_numeric(filters["top1"]).groupby([bank, filters["recalibrated"]]).mean()
    return (
        f"MobileNetV2's top-1 {top1['original', 'False']:.1f}; recalibrated, untrained: Method B "
        f"{top1['B', 'True']:.1f}, scales per layer {top1['sigma-layer', 'True']:.1f}, random banks "
        f"{top1['random', 'True']:.1f}"
    )


@table
def key_filters_fits() -> str:
    """Our fits beside the published parameters, sigma_x sigma_y (filter 7: sigma, alpha)."""
    frame = read("key_filters_fits")
    rows = []
    for number, group in frame.groupby("filter", sort=False):
        cells = []
        for row in group.to_dict("records"):
            last = "alpha" if row["alpha"] else "sigma_y"
            ours = f"{float(row['sigma_x']):.4f} {float(row[last]):.4f}"
            known = f"{row['published_sigma_x']} {row[f'published_{last}']}"
            cells.append(ours if ours == known else f"{ours} ({known})")
        rows.append([str(number), *cells])
    return markdown(["#", *frame["method"].unique()], rows) + provenance(frame)


@table
def key_filters_energy() -> str:
    """Explained energy of every bank: median over filters / share of a layer's energy, mean over layers."""
    frame = read("key_filters_energy")
    groups = list(frame.groupby(["network", "size"], sort=False))
    indexed = [group.set_index("bank") for _, group in groups]
    rows = [
        [bank, *(f"{g.loc[bank, 'median']} / {g.loc[bank, 'layers']}" for g in indexed)]
        for bank in sorted(frame["bank"].unique(), key=lambda b: _BANKS.index(b) if b in _BANKS else len(_BANKS))
    ]
    header = ["bank", *(f"{network} {size}x{size}, {g['filters'].iloc[0]}" for (network, size), g in groups)]
    return markdown(header, rows) + provenance(frame)


@table
def key_filters_speed() -> str:
    """Fitting time, and the depthwise layers beside the plain one."""
    frame = read("key_filters_speed")
    columns = {"work": "work", "channels": "channels", "side": "side", "ms": "ms", "over_plain": "over plain"}
    return markdown(list(columns.values()), frame[list(columns)].to_numpy().tolist()) + provenance(frame)


def _replacement() -> pd.DataFrame:
    """The rows of the replacement study, their figures with as many digits as are shown."""
    frame = read("key_filters_replacement")
    for column, digits in {"top1": 2, "top5": 2, "drop": 2, "explained_energy": 3}.items():
        frame[column] = [f"{float(value):.{digits}f}" for value in frame[column]]
    return frame


@table
def key_filters_replacement() -> str:
    """Accuracy with every bank in a trained network, plain and recalibrated, beside the mean of the random banks."""
    frame = _replacement()
    rows = []
    for network, group in frame.groupby("network", sort=False):
        group = group.assign(control=group["bank"].str.match("random"))
        kinds = ("False", "True")
        controls = {kind: group[group["control"] & (group["recalibrated"] == kind)] for kind in kinds}
        means = {kind: pd.to_numeric(controls[kind]["top1"]).mean() for kind in kinds}
        for bank in sorted(group[~group["control"]]["bank"].unique(), key=_BANKS.index):
            known = group[group["bank"] == bank].set_index("recalibrated")
            row = [str(network), bank, known["explained_energy"].iloc[0], known["parameters"].iloc[0]]
            for kind in kinds:
                if kind not in known.index:
                    row += ["", "", ""]
                    continue
                top1, top5, drop = known.loc[kind, ["top1", "top5", "drop"]]
                over = "" if bank == "original" else f"{float(top1) - means[kind]:+.2f}"
                row += [f"{top1} / {top5}", "" if bank == "original" else drop, over]
            rows.append(row)
        first = controls["False"]
        row = [str(network), f"random, {len(first)} seeds", spread(first["explained_energy"])]
        row.append(first["parameters"].iloc[0])
        for kind in kinds:
            row += [f"{spread(controls[kind]['top1'], 2)} / {spread(controls[kind]['top5'], 2)}"]
            row += [spread(controls[kind]["drop"], 2), ""]
        rows.append(row)
    header = ["network", "bank", "explained energy", "numbers", "top-1 / top-5", "drop", "over random",
              "recalibrated top-1 / top-5", "drop", "over random"]  # fmt: skip
    return markdown(header, rows) + provenance(frame.drop(columns="wall_s"))


@table
def key_filters_gains() -> str:
    """Top-1 with scales refitted to the network, and how much that is above Method B on the same pictures."""
    replaced = _replacement()
    frame = replaced.set_index(["network", "recalibrated", "bank"])["top1"].sort_index()
    stated = read("key_filters_untouched").groupby("network", sort=False).first()
    rows = []
    for network in stated.index:
        for kind, column in (("False", "stated_B"), ("True", "stated_B_recalibrated")):
            known = frame[network, kind]
            refits = ("sigma-network", "sigma-layer", "sigma-filter")
            gains = [f"{known[bank]} ({float(known[bank]) - float(known['B']):+.2f})" for bank in refits]
            how = "recalibrated" if kind == "True" else "as replaced"
            rows.append([str(network), how, stated.loc[network, column], known["B"], *gains])
    header = ["network", "", "B, stated, original pictures", "B", "sigma-network", "sigma-layer", "sigma-filter"]
    return markdown(header, rows) + provenance(replaced.drop(columns="wall_s"))


@table
def key_filters_untouched() -> str:
    """The untouched networks: what their READMEs state, their READMEs' lines on these pictures, and ours."""
    frame = read("key_filters_untouched")
    ours = _replacement().query("bank == 'original'").set_index("network")
    rows = []
    for network, group in frame.groupby("network", sort=False):
        by_offset = group.set_index("offset")
        first = group.iloc[0]
        rows.append([
            str(network),
            f"{first['stated_top1']} / {first['stated_top5']}",
            *(f"{by_offset.loc[o, 'top1']} / {by_offset.loc[o, 'top5']}" for o in ("cut", "rounded")),
            f"{ours.loc[network, 'top1']} / {ours.loc[network, 'top5']}",
        ])  # fmt: skip
    header = ["network", "stated, original pictures", "the README's lines on these pictures, crop offset cut",
              "crop offset rounded", "here"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)
