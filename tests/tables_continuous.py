"""Tables of the continuous rungs: papers, what the KL buys, beta, probes, disentanglement."""

from pathlib import Path
from statistics import mean, median, stdev

from committed import NONE_YET, machine_of, minutes, result, rows_of
from qvae.reports.reproduce import Findings, Published, Row, table


def _one(values, digits):
    """Median of seeds and their range."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def paper_results():
    """The tables of papers as ``qvae reproduce`` writes them."""
    parts = []
    for name in PAPERS:
        report = result(name)
        if report is None:
            continue
        known = [row["published"] and Published(**row["published"]) for row in report["rows"]]
        rows = [
            Row(name=row["name"], ours=row["ours"], published=published)
            for row, published in zip(report["rows"], known, strict=True)
        ]
        title = f"{report['title']}: {report['protocol']['data'].split(',')[0]}"
        parts.append("##" + table(Findings(**{**report, "rows": rows, "title": title})))
        if report["curves"]:
            parts.append(f"![{title}](../benchmarks/results/{Path(name).stem}.png)")
    return "\n\n".join(parts) or NONE_YET


PAPERS = ("aevb_fashion.json", "aevb_digits.json", "iwae_fashion.json", "beta_vae.json")
"""Files of results in the order of the page; each is a study's ``results.json``."""


def latents_results():
    report = result("latents.json")
    if report is None:
        return NONE_YET
    kinds = {
        "manifold": "the plane at even quantiles of the prior",
        "scatter": "codes of test digits, by label",
        "interpolation": "arcs between pairs of test digits",
    }
    dims = ", ".join(f"{row['dim']} ({row['kl']:.2f})" for row in report["traversal"])
    lines = [
        f"**{kind.capitalize()}**: {what}.\n\n![{what}](../benchmarks/results/latents_{kind}.png)"
        for kind, what in kinds.items()
    ]
    lines.append(
        f"**Traversal** of the 2-D shapes, a row a coordinate. From above, by KL in nats: {dims}."
        "\n\n![one coordinate a row](../benchmarks/results/latents_traversal.png)"
    )
    return "\n\n".join(lines)


def ae_vs_vae_results():
    report = result("ae_vs_vae.json")
    if report is None:
        return NONE_YET
    measured = {
        "mean squared error": (lambda row: row["mse"], 4),
        "largest step / mean step of a walk": (
            lambda row: row["interpolation"]["largest step / mean step"],
            2,
        ),
        "length of a walk / distance of its ends": (
            lambda row: row["interpolation"]["length / distance of ends"],
            2,
        ),
        "output change / input change": (
            lambda row: row["nudges"]["output change / input change"],
            2,
        ),
        "code change / code spread": (lambda row: row["nudges"]["code change / code spread"], 3),
    }
    networks = list(report["rows"][0]["frechet"]["reconstructions"])
    for how in report["rows"][0]["frechet"]:
        for network in networks:
            measured[f"Frechet, {how}, {network}"] = (
                lambda row, how=how, network=network: row["frechet"][how][network],
                3,
            )
    lines = []
    for name, (read, digits) in measured.items():
        found = {
            model: [read(row) for row in report["rows"] if row["model"] == model]
            for model in ("AE", "VAE")
        }
        ratio = median(found["AE"]) / median(found["VAE"])
        cells = [_one(found[model], digits) for model in ("AE", "VAE")]
        lines.append([name, *cells, f"{ratio:.2f}"])
    seeds = len({row["seed"] for row in report["rows"]})
    return "\n".join(
        [
            *rows_of(["", "AE", "VAE", "AE / VAE"], lines),
            "",
            f"{report['data']}; {report['steps']:,} steps, median and range of {seeds} seeds; "
            f"{machine_of(report)}, {minutes(report['seconds'])}.",
            "",
            "![samples of the AE](../benchmarks/results/ae_vs_vae_ae.png) "
            "![samples of the VAE](../benchmarks/results/ae_vs_vae_vae.png)",
            "",
            "Left the autoencoder, right the VAE; the upper three rows from N(0, I), the lower "
            "three from a Gaussian fitted to the codes.",
        ]
    )


def beta_sweep_results():
    report = result("beta_sweep.json")
    if report is None:
        return NONE_YET
    names = {
        "rate": 2,
        "distortion": 2,
        "mutual_information": 2,
        "marginal_kl": 2,
        "active_units": 1,
    }
    betas = sorted({row["beta"] for row in report["rows"]})
    machines = "; ".join(machine_of({"machine": machine}) for machine in report["machines"])
    lines = []
    for beta in betas:
        seeds = [row for row in report["rows"] if row["beta"] == beta]
        cells = [
            f"{mean([row[n] for row in seeds]):.{digits}f}"
            + (f" ± {stdev([row[n] for row in seeds]):.{digits}f}" if len(seeds) > 1 else "")
            for n, digits in names.items()
        ]
        lines.append([f"{beta:g}", *cells])
    return "\n".join(
        [
            *rows_of(["beta", *(n.replace("_", " ") for n in names)], lines),
            "",
            f"{report['data']}, {report['unit']}; {report['steps']:,} steps, mean and standard "
            f"deviation of {len(report['rows']) // len(betas)} seeds; {machines}; "
            f"{minutes(report['seconds'])}.",
        ]
    )


def probe_results():
    report = result("probe.json")
    if report is None:
        return NONE_YET
    lines = []
    for model, found in report["models"].items():
        for name, row in found["rows"].items():
            lines.append([model, name, f"{row['accuracy']:.2%}", f"{row['n']:,}"])
    dims = {found["code_dim"] for found in report["models"].values()}
    return "\n".join(
        [
            *rows_of(["model", "features", "accuracy", "N"], lines),
            "",
            f"{report['data']}, codes of {', '.join(map(str, dims))} numbers; {report['steps']:,} "
            f"steps; {machine_of(report)}.",
        ]
    )


def disent_results():
    report = result("disent_metrics.json")
    if report is None:
        return NONE_YET
    lines = [
        [table, metric, f"{ours:.4f}", f"{theirs:.4f}"]
        for table, metrics in report["rows"].items()
        for metric, (ours, theirs) in metrics.items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*rows_of(["table", "metric", "ours", "`disent`"], lines), "", f"{versions}."])


def rung_results():
    report = result("shapes2d_factor.json")
    if report is None:
        return NONE_YET
    seeds = [str(row["seed"]) for row in report["rows"]]
    lines = [
        [
            name,
            f"{value:.3f}",
            *(f"{row['scores'][name]['value']:.3f}" for row in report["rows"]),
        ]
        for name, value in report["medians"].items()
    ]
    spent = sum(row["seconds"] for row in report["rows"]) / len(seeds) / 60
    trained_on = " and ".join(sorted({row["trained_on"] for row in report["rows"]}))
    return "\n".join(
        [
            *rows_of(["score", "median", *(f"seed {seed}" for seed in seeds)], lines),
            "",
            f"Recipe `{report['recipe']}`, {spent:.0f} minutes a seed on {trained_on}.",
        ]
    )


def shapes_results():
    report = result("shapes2d.json")
    if report is None:
        return NONE_YET
    speeds = report["images_per_second"]
    return (
        f"`shapes2d` draws {speeds['pixels']['median']:,} pictures a second as bits, and "
        f"{speeds['batches']['median']:,} as batches of {report['batch_size']} in float32 "
        f"({machine_of(report)}; medians)."
    )
