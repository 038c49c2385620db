"""Tables of the clock: the routes, the priors beside each other, a language model."""

import json

from committed import NONE_YET, ROOT, result, rows_of

CLOCK_ROUTES = {
    "style": "Style tokens",
    "grid": "Grid tokens",
    "cvae": "Gaussian z, its prior learned",
    "cvae_textbook": "Gaussian z from N(0, I)",
}


SCORES = "split|N|within 1 min|without floor|dial right|median min|p99 min|gross|hour slips"


def _scores(split, row):
    shares = [f"{row[name]:.1%}" for name in ("within_1", "within_1_no_floor", "dial_right")]
    wrong = [f"{row[name]:.1%}" for name in ("gross", "hour_slips")]
    return [split, row["n"], *shares, f"{row['median']:.2f}", f"{row['p99']:.1f}", *wrong]


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
        spent = sorted(sum(found["training_seconds"].values()) / 60 for found in reports)
        every = f" (all seeds: {spent[0]:.0f} to {spent[-1]:.0f})" if len(spent) > 1 else ""
        minutes = sum(report["training_seconds"].values()) / 60
        read = recon["times"]["all"]["within_1"]
        lines += [
            f"**{title}**: seed {report['seed']}, the worst of {len(reports)}; all in {names}.",
            "",
            *rows_of(SCORES, [_scores(*item) for item in report["samples"].items()]),
            "",
            f"Style variance against real clocks {report['style_variance_ratio']:.2f}; "
            f"reconstructions {recon['psnr']:.2f} dB, {read:.1%} within 1 min, "
            f"hands' colour error {colour['mean']:.3f} of full scale. "
            f"Trained in {minutes:.0f} minutes{every}, "
            f"{report['machine']['num_threads']} thread(s).",
            "",
        ]
    return "\n".join(lines).strip() or NONE_YET


def sampler_results():
    """What every sampler did at dev times, and what the chosen one does at the test's."""
    report = result("clock_grid_sampler.json")
    if report is None:
        return NONE_YET
    lines = [
        [
            f"{row['temperature']:g}, {row['guidance']:g}",
            *(f"{row[part]['within_1']:.1%}" for part in ("block", "random")),
            *(f"{row[part]['gross']:.1%}" for part in ("block", "random")),
        ]
        for row in report["tried"]
    ]
    heads = "temperature, guidance|dev block|dev random|gross, dev block|gross, dev random"
    counts = " and ".join(f"{report['tried'][0][part]['n']} ({part})" for part in report["dev"])
    found = {"chosen": report, "recipe": report["recipe"]}
    rows = [
        [
            f"{many['temperature']:g}, {many['guidance']:g} ({name})",
            f"{scores['samples']['off_block']['within_1']:.1%}",
            f"{scores['samples']['off_block']['gross']:.1%}",
            f"{scores['samples']['block']['within_1']:.1%}",
            f"{many['within_1']:.1%}",
            f"{many['gross']:.1%}",
            f"{scores['style_variance_ratio']:.2f}",
        ]
        for (name, scores), many in zip(found.items(), report["block"], strict=True)
    ]
    test = (
        "temperature, guidance|off the block|gross|block, N=160|block, N=1,600|gross there"
        "|style variance"
    )
    return "\n".join(
        [
            *rows_of(heads, lines),
            "",
            f"Drawings of a row: {counts}. The first was chosen. On the test times, drawn by the "
            f"prior of all training times:",
            "",
            *rows_of(test, rows),
            "",
            f"Shares within a minute. Seed {report['seed']}, a tokenizer of "
            f"{report['tokenizer_steps']:,} steps; {report['machine']['processor']}.",
        ]
    )


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
    heads = (
        "prior|parameters|training min|bits/token|within 1 min off the block|block|gross"
        "|CPU ms, 240 at once|one alone|temperature, guidance"
    )
    return "\n".join(
        [
            *rows_of(heads, lines),
            "",
            f"Clocks by grid tokens, seed 0, the protocol of [the clock](clock.md); "
            f"{report['threads']} thread(s); each sampler the best of nine, {report['tuned_on']}.",
        ]
    )


def llm_results():
    report = result("llm_clock.json")
    if report is None:
        return NONE_YET
    drawing, tuning = report["drawing"], result("llm_clock_tuning.json")
    chosen = {name: value for name, value in report["sampler"].items() if value is not None}
    sampler = ", ".join(f"{name} {value}" for name, value in chosen.items())
    shown = {
        "drawing": ("dial_right", "within_1", "within_1_no_floor", "gross"),
        "reading": ("exact", "within_1", "gross"),
    }
    drawn = [_shares(split, row, shown["drawing"]) for split, row in drawing["splits"].items()]
    read = [
        _shares(title + split, row, shown["reading"])
        for title, name in [("", "reading"), ("second renderer, ", "reading_second_renderer")]
        for split, row in report[name]["splits"].items()
    ]
    drawn_heads = "drawing, held-out pairs|N|dial right|within 1 min|without floor|gross"
    lines = [
        f"{report['parameters'] / 1e6:.1f} M parameters, {report['training_seconds'] / 60:.0f} "
        f"minutes of training with {report['machine']['num_threads']} thread(s); "
        f"sampler {sampler}. Notes right "
        f"{drawing['note_right']:.1%}, faces as asked {drawing['face_right']:.1%}.",
        "",
        *rows_of(drawn_heads, drawn),
        "",
        *rows_of("reading|N|exact minute|within 1 min|gross", read),
        "",
        *_tuning(report, tuning),
        *_export(report, result("llm_export.json")),
    ]
    return "\n".join(lines)


def _tuning(report, tuning):
    """The samplers that were tried on the run that was scored, or that nobody kept them."""
    if tuning is None or tuning["training_seconds"] != report["training_seconds"]:
        return ["Which samplers were tried, and how well each drew, was not kept for this run."]
    names = ("dial_right", "within_1", "gross")
    rows = [
        [f"{row['temperature']:g}", f"{row['guidance']:g}", *(f"{row[name]:.1%}" for name in names)]
        for row in tuning["tried"]
    ]
    told = f"Samplers tried, on {tuning['tuned_on']}:"
    return [told, "", *rows_of("temperature|guidance|dial right|within 1 min|gross", rows)]


def _shares(title, row, names):
    return [title, row["n"], *(f"{row[name]:.1%}" for name in names)]


def _export(report, export):
    """Where the folder of the run that was scored was loaded without this package."""
    if export is None or export["training_seconds"] != report["training_seconds"]:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in export["versions"].items())
    told = f"The folder in a {export['environment']} environment with {versions}: loads as "
    told += f"{' and '.join(export['loaded_as'])}, logits within "
    return ["", f"{told}{export['largest_logit_difference']:.1e} of ours."]
