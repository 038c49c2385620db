"""The parts of the documents that are made: trees from the code, tables from benchmarks/results."""

import ast
import json
import textwrap
from pathlib import Path

from committed import NONE_YET, ROOT, result, rows_of
from qvae import recipe_files
from qvae.reports.reproduce import Findings, Published, Row, table
from tables_continuous import (
    ae_vs_vae_results,
    beta_sweep_results,
    disent_results,
    probe_results,
    shapes_results,
    tcvae_results,
)

PACKAGE = ROOT / "src" / "qvae"
README = ROOT / "README.md"
RUNGS = {
    # rung: (bottleneck, whether beta differs from 1, whether it is told conditions, its loss)
    "autoencoder": ("identity", False, False, "`nll`"),
    "VAE": ("gaussian", False, False, "`nll + KL(q(z\\|x) ‖ N(0, I))`"),
    "beta-VAE": ("gaussian", True, False, "`nll + beta * KL`; or `beta * \\|KL - C\\|`"),
    "beta-TCVAE": ("gaussian_tc", False, False, "`nll + KL + (tc_weight - 1) * TC`"),
    "FactorVAE": ("gaussian_factor", False, False, "`nll + KL + tc_weight * TC` of a critic"),
    "IWAE": ("gaussian", False, False, "`-log` of the mean weight of k draws"),
    "VQ-VAE": ("vq", False, False, "`nll + cells * ln V +` codebook and commitment terms"),
    "VQ-VAE, EMA codebook": ("vq_ema", False, False, "`nll + cells * ln V +` commitment term"),
    "FSQ": ("fsq", False, False, "`nll + cells * ln V +` a leash on overshoot"),
    "residual VQ": ("residual", False, False, "the same, summed over levels"),
    "conditional: any, with `conditional: true`": (None, None, True, "as it is, all given `cond`"),
}
"""The ladder in its order; None where a rule does not matter."""


def purpose(path):
    """The first line of a module's docstring, as the tree shows it."""
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n", 1)[0]
    return first.replace("``", "").replace(":func:`nearest`", "nearest").rstrip(".")


def source_tree(*, is_short=False):
    """One line for each module; a package's line is its ``__init__``'s.

    The short tree of the README names a package's modules in a list.
    """
    lines = ["src/qvae/"]

    def walk(folder, indent):
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        if is_short and folder != PACKAGE:
            below = [path for path in sorted(folder.glob("*/*.py")) if path.stem != "__init__"]
            found = [path.relative_to(folder).as_posix() for path in [*files, *below]]
            names = " ".join(found)
            lines.extend(textwrap.wrap(names, 94, initial_indent=indent, subsequent_indent=indent))
            return
        lines.extend(f"{indent + path.name:<23} {purpose(path)}" for path in files)
        for path in sorted(folder.glob("*/__init__.py")):
            lines.append(f"{f'{indent}{path.parent.name}/':<23} {purpose(path)}")
            walk(path.parent, indent + "    ")

    walk(PACKAGE, "  ")
    lines.append(f"{'  recipes/':<23} One YAML file a recipe; `qvae list recipe` names them")
    return "```text\n" + "\n".join(lines) + "\n```"


def recipes_of(bottleneck, has_beta, is_told, *, is_many=False):
    """The shipped recipes on a rung."""
    found = []
    for name in recipe_files.recipe_names():
        model = recipe_files.read_recipe(recipe_files.find_recipe(name)).get("model") or {}
        rules = [
            (bottleneck, model.get("bottleneck", {}).get("name")),
            (has_beta, model.get("beta", 1) != 1),
            (is_told, model.get("conditional", False)),
            (is_many, model.get("num_samples", 1) > 1),
        ]
        if model and all(rule is None or rule == fact for rule, fact in rules):
            found.append(f"`{name}`")
    return ", ".join(found)


def ladder_table():
    lines = ["| rung | bottleneck | loss, nats a sample | recipes |", "|---|---|---|---|"]
    for rung, (bottleneck, has_beta, is_told, loss) in RUNGS.items():
        recipes = (
            recipes_of(bottleneck, has_beta, is_told, is_many=rung == "IWAE")
            or f"any, with `--bottleneck {bottleneck}`"
        )
        part = f"`{bottleneck}`" if bottleneck else ""
        lines.append(f"| {rung} | {part} | {loss} | {recipes} |")
    priors = ", ".join(f"`{n}`" for n in recipe_files.recipe_names() if "prior" in n)
    lines.append(
        f"| prior over tokens | | `-log p(tokens \\| cond)`, in place of `ln V` | {priors} |"
    )
    return "\n".join(lines)


CLOCK_ROUTES = {
    "style": "Style tokens",
    "grid": "Grid tokens",
    "cvae": "Gaussian z, its prior learned",
    "cvae_textbook": "Gaussian z from N(0, I)",
}


def clock_results():
    """The worst seed of each route in ``benchmarks/results``, a row a split."""
    lines = []
    for route, title in CLOCK_ROUTES.items():
        files = sorted((ROOT / "benchmarks" / "results").glob(f"clock_{route}_seed*.json"))
        reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not reports:
            continue
        report = min(reports, key=lambda found: found["samples"]["off_block"]["within_1"])
        recon, colour = report["reconstructions"], report["reconstructions"]["hand_colour_error"]
        names = ", ".join(f"`benchmarks/results/{file.name}`" for file in files)
        lines += [
            f"**{title}**: seed {report['seed']}, the worst of {len(reports)}; all in {names}.",
            "",
            "| split | N | within 1 min | without floor | dial right | median min | p99 min "
            "| gross | hour slips |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for split, row in report["samples"].items():
            shares = [
                f"{row[name]:.1%}" for name in ("within_1", "within_1_no_floor", "dial_right")
            ]
            errors = [f"{row['median']:.2f}", f"{row['p99']:.1f}"]
            wrong = [f"{row[name]:.1%}" for name in ("gross", "hour_slips")]
            lines.append("| " + " | ".join([split, str(row["n"]), *shares, *errors, *wrong]) + " |")
        minutes = sum(report["training_seconds"].values()) / 60
        read = recon["times"]["all"]["within_1"]
        lines += [
            "",
            f"Style variance against real clocks {report['style_variance_ratio']:.2f}; "
            f"reconstructions {recon['psnr']:.2f} dB, {read:.1%} within 1 min, "
            f"hands' colour error {colour['mean']:.3f} of full scale. "
            f"Trained in {minutes:.0f} minutes, {report['machine']['num_threads']} thread(s).",
            "",
        ]
    return "\n".join(lines).strip() or NONE_YET


def fashion_results():
    report = result("fashion.json")
    if report is None:
        return NONE_YET
    names = ("psnr", "ssim", "usage", "perplexity", "bits", "entropy_bits")
    lines = [
        "| codes | recipe | PSNR dB | SSIM | usage | perplexity | bits a sample "
        "| entropy, unigram |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, row in report["tokenizers"].items():
        values = [f"{row['scores'][name]['value']:.4g}" for name in names]
        lines.append("| " + " | ".join([title, f"`{row['recipe']}`", *values]) + " |")
    prior = {name: row["value"] for name, row in report["prior"]["scores"].items()}
    seconds = report["seconds"]
    lines += [
        "",
        f"Prior: {prior['bits_per_token']:.2f} bits a token; unigram "
        f"{prior['bits_per_token_unigram']:.2f}, uniform {prior['bits_per_token_uniform']:.2f}. "
        "Seconds: " + ", ".join(f"{name} {value:g}" for name, value in seconds.items()) + "; "
        f"{report['machine']['num_threads']} thread(s).",
        "",
        "![samples by class](../benchmarks/results/fashion_samples.png)",
    ]
    return "\n".join(lines)


def step_results():
    report = result("vqvae_step.json")
    if report is None:
        return NONE_YET
    machine = report["machine"]
    lines = [
        f"{machine['cpu']} ({', '.join(machine['flags'])}), {report['threads']} thread(s), "
        f"{report['rounds']} rounds, torch {report['torch']}.",
        "",
        "| hidden | pythae float32 ms | ours float32 | pythae bf16 | ours bf16 | ours bf16 against "
        "pythae float32 | at equal bf16 | at equal float32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for hidden, row in report["hidden"].items():
        times = [
            str(row["milliseconds"][f"{who}, {kind}"])
            for kind in ("float32", "bf16")
            for who in ("pythae", "ours")
        ]
        ratios = [
            f"{row[name]:.2f}x"
            for name in ("against pythae float32", "at equal bf16", "at equal float32")
        ]
        lines.append("| " + " | ".join([hidden, *times, *ratios]) + " |")
    return "\n".join(lines)


def bench_results(*names):
    """Milliseconds, how many times our default path, and memory, for each shape of a bench."""
    lines = []
    for name, report in ((name, result(name)) for name in names if result(name)):
        machine = report["machine"]
        what = report["what"][0].upper() + report["what"][1:]
        lines += [
            f"**{what}.** {machine['cpu']} ({', '.join(machine['flags'])}), "
            f"{machine['threads']} thread(s), {report['clock']}, torch {machine['torch']}; "
            f"our path: {machine['kernels'].split()[0]}.",
            "",
            f"![milliseconds a contestant](../benchmarks/results/{Path(name).stem}.png)",
            "",
        ]
        for row in report["rows"]:
            ran = {name: it for name, it in row["contestants"].items() if isinstance(it, dict)}
            ours = ran.get("ours") or ran[machine["kernels"].split()[0]]
            lines += [
                "| N={} K={} D={} | median ms | best ms | turns | times ours | MB |".format(
                    *row["shape"]
                ),
                "|---|---|---|---|---|---|",
            ]
            for name, it in row["contestants"].items():
                if name not in ran:
                    lines.append(f"| {name} | {it} | | | | |")
                    continue
                ratio = f"{it['median_ms'] / ours['median_ms']:.2f}"
                memory = it.get("megabytes")
                values = [
                    f"{it['median_ms']:.2f}",
                    f"{it['best_ms']:.2f}",
                    str(it["rounds"]),
                    ratio,
                ]
                lines.append(
                    f"| {name} | {' | '.join(values)} | {'' if memory is None else memory} |"
                )
            lines.append("")
    return "\n".join(lines).strip() or NONE_YET


def vae_step_results():
    report = result("vae_step.json")
    if report is None:
        return NONE_YET
    machine, cpu, wall = (
        report[name] for name in ("machine", "processor_milliseconds", "wall_milliseconds")
    )
    lines = [
        f"{machine['cpu']} ({', '.join(machine['flags'])}), {report['threads']} thread(s), "
        f"{report['rounds']} rounds, torch {report['torch']}.",
        "",
        "| loop | processor ms a step | wall ms | pythae's processor ms over it |",
        "|---|---|---|---|",
    ]
    for name, value in cpu.items():
        ratio = cpu["pythae, float32"] / value
        lines.append(f"| {name} | {value:.2f} | {wall[name]:.2f} | {ratio:.2f}x |")
    return "\n".join(lines)


def paper_results():
    """The tables of papers as ``qvae reproduce`` writes them."""
    parts = []
    for report in filter(None, map(result, PAPERS)):
        known = [row["published"] and Published(**row["published"]) for row in report["rows"]]
        rows = [
            Row(name=row["name"], ours=row["ours"], published=published)
            for row, published in zip(report["rows"], known, strict=True)
        ]
        title = f"{report['title']}: {report['protocol']['data'].split(',')[0]}"
        parts.append("##" + table(Findings(**{**report, "rows": rows, "title": title})))
    return "\n\n".join(parts) or NONE_YET


PAPERS = ("aevb_fashion.json", "aevb_digits.json", "iwae_fashion.json", "beta_vae.json")
"""Files of results in the order of the page; each is a study's ``results.json``."""


def prior_results():
    report = result("priors.json")
    if report is None:
        return NONE_YET
    lines = [
        f"VAE of the same networks: {report['vae']['value']:.2f} bits/dim.",
        "",
        "| prior | bits/token | unigram | bits/dim, both stages | told the class | class found, of "
        "reconstructions | variance, of real | CPU ms a sample | bytes | WebP | JPEG | PNG |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["priors"].items():
        tokens, total, drawn = row["tokens"], row["total"], row["samples"]
        sizes = row["compressed"]["bytes"]
        values = [
            f"{tokens['bits_per_token']['value']:.3f}",
            f"{tokens['bits_per_token_unigram']['value']:.3f}",
            f"{total['bits_per_dim_total']['value']:.3f}",
            f"{total['bits_per_dim_told']['value']:.3f}",
            f"{drawn['accuracy_ratio']:.1%}",
            f"{drawn['variance_ratio']:.2f}",
            f"{drawn['cpu_ms_a_sample']:.2f}",
            *(f"{sizes[codec]:,}" for codec in ("ours", "webp", "jpeg", "png")),
        ]
        lines.append("| " + " | ".join([f"`{name}`", *values]) + " |")
    images = {row["compressed"]["images"] for row in report["priors"].values()}
    lines += ["", f"Bytes of {max(images)} test images, each at the PSNR of its own tokens."]
    return "\n".join(lines)


def clock_prior_results():
    report = result("clock_priors.json")
    if report is None:
        return NONE_YET
    lines = []
    for name, row in report["priors"].items():
        off, block = row["samples"]["off_block"], row["samples"]["block"]
        sampler = row["sampler"]["settings"]
        lines.append(
            [
                name,
                f"{row['parameters'] / 1e6:.1f} M",
                f"{row['training_seconds'] / 60:.0f}",
                f"{row['bits_per_token']['value']:.3f}",
                f"{off['within_1']:.1%}",
                f"{block['within_1']:.1%}",
                f"{off['gross']:.1%}",
                f"{row['cpu_ms_a_sample']:.1f}",
                f"{row['cpu_ms_alone']:.1f}",
                f"{sampler['temperature']:g}, {sampler['guidance']:g}",
            ]
        )
    heads = "prior|parameters|training min|bits/token|within 1 min off the block|block|gross"
    heads += "|CPU ms, 240 at once|one alone"
    return "\n".join(
        [
            *rows_of([*heads.split("|"), "temperature, guidance"], lines),
            "",
            f"Clocks by grid tokens, seed 0, the protocol of [the clock](clock.md); "
            f"{report['threads']} thread(s); each sampler the best of nine, {report['tuned_on']}.",
        ]
    )


def decode_results():
    report = result("decode.json")
    if report is None:
        return NONE_YET
    lines = [
        f"{report['machine']['cpu']}, one thread, {report['rounds']} rounds, "
        f"torch {report['torch']}, "
        f"transformers {report['transformers']}; seconds of computing for 256 tokens.",
        "",
        "| batch | ours float32 | ours bf16 | transformers float32 | transformers bf16 "
        "| best against best |",
        "|---|---|---|---|---|---|",
    ]
    for num, row in report["batches"].items():
        names = [f"{who}, {kind}" for who in ("ours", "transformers") for kind in DTYPES]
        times = [f"{row['seconds'][name]:.3g}" for name in names]
        lines.append("| " + " | ".join([num, *times, f"{row['ratio_best_dtype']:.2f}x"]) + " |")
    return "\n".join(lines)


DTYPES = ("float32", "bf16")


def llm_results():
    report = result("llm_clock.json")
    if report is None:
        return NONE_YET
    drawing = report["drawing"]
    chosen = {name: value for name, value in report["sampler"].items() if value is not None}
    sampler = ", ".join(f"{name} {value}" for name, value in chosen.items())
    lines = [
        f"{report['parameters'] / 1e6:.1f} M parameters, {report['training_seconds'] / 60:.0f} "
        f"minutes of training with {report['machine']['num_threads']} thread(s); "
        f"sampler {sampler}. Notes right "
        f"{drawing['note_right']:.1%}, faces as asked {drawing['face_right']:.1%}.",
        "",
        "| drawing, held-out pairs | N | dial right | within 1 min | without floor | gross |",
        "|---|---|---|---|---|---|",
    ]
    names = ("dial_right", "within_1", "within_1_no_floor", "gross")
    for split, row in drawing["splits"].items():
        shares = [f"{row[name]:.1%}" for name in names]
        lines.append("| " + " | ".join([split, str(row["n"]), *shares]) + " |")
    lines += ["", "| reading | N | exact minute | within 1 min | gross |", "|---|---|---|---|---|"]
    for title, name in [("", "reading"), ("second renderer, ", "reading_second_renderer")]:
        for split, row in report[name]["splits"].items():
            shares = [f"{row[key]:.1%}" for key in ("exact", "within_1", "gross")]
            lines.append("| " + " | ".join([title + split, str(row["n"]), *shares]) + " |")
    return "\n".join(lines)


def digits_results():
    report = result("digits.json")
    if report is None:
        return NONE_YET
    scores, published = report["scores"], report["published"]
    values = [f"{scores[name]['value']:.4g}" for name in ("psnr", "ssim", "usage", "entropy_bits")]
    num = f"{report['trained_on']:,} / {scores['psnr']['n']:,}"
    return "\n".join(
        [
            "| what | trained on / tested on | PSNR dB | SSIM | usage | entropy, unigram, bits |",
            "|---|---|---|---|---|---|",
            "| " + " | ".join(["`vqvae`, K=512, D=64, 7x7 codes", num, *values]) + " |",
            f"| {published['by']}, {published['how']} | {published['data']} "
            f"| {published['psnr']} | | | |",
            "",
            f"{report['steps']:,} steps, {report['seconds'] / 60:.0f} minutes of one core.",
        ]
    )


def usage_results():
    parts = []
    for report in filter(None, map(result, ("codebook_usage_14.json", "codebook_usage_16.json"))):
        size = 2 ** report["settings"]["bits_per_cell"]
        lines = [
            f"**{size:,} codes**, {report['runs'][0]['steps']:,} steps of "
            f"{report['settings']['overrides']['train.batch_size']} crops "
            f"({report['crops']['train']:,} to train, {report['crops']['test']:,} to test).",
            "",
            "| quantizer | PSNR dB | usage | perplexity | entropy, bits a sample | seconds "
            "| peak MB |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in report["summary"]:
            if not row["n"]:
                lines.append(f"| `{row['quantizer']}` | failed | | | | | |")
                continue
            formats = {
                "psnr": ".2f",
                "usage": ".1%",
                "perplexity": ",.0f",
                "entropy_bits": ",.0f",
                "seconds": ",.0f",
                "peak_mb": ",.0f",
            }
            values = [format(row[name]["mean"], form) for name, form in formats.items()]
            lines.append("| " + " | ".join([f"`{row['quantizer']}`", *values]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or NONE_YET


def peer_quality_results():
    report = result("peer_quality.json")
    if report is None:
        return NONE_YET
    lines = [
        "| ours | peer | PSNR dB, ours | peer's | difference | usage, ours | peer's |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["pairs"]:
        values = [f"{row[name]:.2f}" for name in ("psnr_ours", "psnr_peer")]
        shares = [f"{row[name]:.1%}" for name in ("usage_ours", "usage_peer")]
        cells = [f"`{row['ours']}`", row["peer"], *values, f"{row['psnr_difference']:+.2f}"]
        lines.append("| " + " | ".join([*cells, *shares]) + " |")
    peers = ", ".join(f"{name} {version}" for name, version in report["peers"].items())
    lines += ["", f"{report['steps']:,} steps, means of seeds {report['seeds']}; {peers}."]
    return "\n".join(lines)


GENERATED = {
    README: {"ladder": ladder_table, "tree": lambda: source_tree(is_short=True)},
    ROOT / "docs" / "architecture.md": {"tree": source_tree},
    ROOT / "docs" / "continuous.md": {
        "papers": paper_results,
        "ae-vs-vae": ae_vs_vae_results,
        "beta-sweep": beta_sweep_results,
        "probe": probe_results,
    },
    ROOT / "docs" / "disentanglement.md": {
        "disent": disent_results,
        "tcvae": tcvae_results,
        "shapes": shapes_results,
    },
    ROOT / "docs" / "llm.md": {"llm": llm_results},
    ROOT / "docs" / "clock.md": {"results": clock_results},
    ROOT / "docs" / "nearest.md": {
        "nearest": lambda: bench_results("nearest.json", "nearest_large.json", "quantizer.json")
    },
    ROOT / "docs" / "quantizers.md": {
        "digits": digits_results,
        "usage": usage_results,
        "peers": peer_quality_results,
    },
    ROOT / "docs" / "priors.md": {
        "priors": prior_results,
        "clock-priors": clock_prior_results,
        "decode": decode_results,
    },
    ROOT / "docs" / "results.md": {
        "fashion": fashion_results,
        "step": step_results,
        "vae-step": vae_step_results,
    },
}
