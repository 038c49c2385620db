"""Tables of quantizers and of priors over their tokens."""

from committed import NONE_YET, machine_of, minutes, result, rows_of


def fashion_results():
    report = result("fashion.json")
    if report is None:
        return NONE_YET
    names = ("psnr", "ssim", "usage", "perplexity", "bits", "entropy_bits")
    heads = "codes|recipe|PSNR dB|SSIM|usage|perplexity|bits a sample|entropy, unigram"
    rows = []
    for title, row in report["tokenizers"].items():
        values = [f"{row['scores'][name]['value']:.4g}" for name in names]
        rows.append([title, f"`{row['recipe']}`", *values])
    prior = {name: row["value"] for name, row in report["prior"]["scores"].items()}
    seconds = report["seconds"]
    lines = [
        *rows_of(heads, rows),
        "",
        f"Prior: {prior['bits_per_token']:.2f} bits a token; unigram "
        f"{prior['bits_per_token_unigram']:.2f}, uniform {prior['bits_per_token_uniform']:.2f}. "
        "Seconds: " + ", ".join(f"{name} {value:g}" for name, value in seconds.items()) + "; "
        f"{report['machine']['num_threads']} thread(s).",
        "",
        "![samples by class](../benchmarks/results/fashion_samples.png)",
    ]
    return "\n".join(lines)


def digits_results():
    report = result("digits.json")
    if report is None:
        return NONE_YET
    scores, published = report["scores"], report["published"]
    values = [f"{scores[name]['value']:.4g}" for name in ("psnr", "ssim", "usage", "entropy_bits")]
    num = f"{report['trained_on']:,} / {scores['psnr']['n']:,}"
    theirs = f"{published['by']}, {published['how']}"
    rows = [
        ["`vqvae`, K=512, D=64, 7x7 codes", num, *values],
        [theirs, published["data"], published["psnr"], "", "", ""],
    ]
    heads = "what|trained on / tested on|PSNR dB|SSIM|usage|entropy, unigram, bits"
    return "\n".join(
        [
            *rows_of(heads, rows),
            "",
            f"{report['steps']:,} steps, {report['seconds'] / 60:.0f} minutes of one core.",
        ]
    )


def usage_results():
    parts = []
    for report in filter(None, map(result, ("codebook_usage_14.json", "codebook_usage_16.json"))):
        size = 2 ** report["settings"]["bits_per_cell"]
        machine = report["machine"].get("gpu", report["machine"]["cpu"])
        overrides = report["settings"]["overrides"]
        names = [row["quantizer"] for row in report["runs"]]
        own = [f"`{key} {value}`" for key, value in overrides.items() if key.split(".")[0] in names]
        lines = [
            f"**{size:,} codes**, {report['runs'][0]['steps']:,} steps of "
            f"{overrides['train.batch_size']} crops "
            f"({report['crops']['train']:,} to train, {report['crops']['test']:,} to test), "
            f"on {machine}. Beyond defaults: {', '.join(own)}.",
            "",
        ]
        rows = []
        for row in report["summary"]:
            if not row["n"]:
                rows.append([f"`{row['quantizer']}`", "failed", "", "", "", "", ""])
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
            rows.append([f"`{row['quantizer']}`", *values])
        heads = "quantizer|PSNR dB|usage|perplexity|entropy, bits a sample|seconds|peak MB"
        parts.append("\n".join([*lines, *rows_of(heads, rows)]))
    return "\n\n".join(parts) or NONE_YET


def peer_quality_results():
    report = result("peer_quality.json")
    if report is None:
        return NONE_YET
    rows = []
    for row in report["pairs"]:
        values = [f"{row[name]:.2f}" for name in ("psnr_ours", "psnr_peer")]
        shares = [f"{row[name]:.1%}" for name in ("usage_ours", "usage_peer")]
        cells = [f"`{row['ours']}`", row["peer"], *values, f"{row['psnr_difference']:+.2f}"]
        rows.append([*cells, *shares])
    peers = ", ".join(f"{name} {version}" for name, version in report["peers"].items())
    heads = "ours|peer|PSNR dB, ours|peer's|difference|usage, ours|peer's"
    told = f"{report['steps']:,} steps, means of seeds {report['seeds']}; {peers}."
    return "\n".join([*rows_of(heads, rows), "", told])


def prior_results():
    report = result("priors.json")
    if report is None:
        return NONE_YET
    heads = (
        "prior|bits/token|unigram|bits/dim, both stages|told the class|class found, of "
        "reconstructions|variance, of real|CPU ms a sample|bytes|WebP|JPEG|PNG|tokens back"
    )
    rows = []
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
            f"{row['compressed']['identical_tokens']:.1%}",
        ]
        rows.append([f"`{name}`", *values])
    images = {row["compressed"]["images"] for row in report["priors"].values()}
    return "\n".join(
        [
            f"VAE of the same networks: {report['vae']['value']:.2f} bits/dim.",
            "",
            *rows_of(heads, rows),
            "",
            f"Bytes of {max(images)} test images, each at the PSNR of its own tokens; tokens back: "
            "files that decode to identical tokens.",
        ]
    )


def emoji_results():
    report = result("emoji.json")
    if report is None:
        return NONE_YET
    coder, tokens, drawn = report["tokenizer"], report["tokens"], report["samples"]
    cells = [
        f"{coder['psnr']['value']:.2f}",
        f"{coder['usage']['value']:.1%}",
        *(f"{tokens[name]['value']:.2f}" for name in ("bits_per_token", "bits_per_token_unigram")),
        f"{drawn['accuracy_on_samples']:.1%}",
        f"{drawn['accuracy_on_reconstructions']:.1%}",
        f"{drawn['variance_ratio']:.2f}",
    ]
    heads = "PSNR dB|usage|bits/token|unigram|class found, samples|reconstructions"
    parts = ", ".join(f"{num:,} {part}" for part, num in report["pictures"].items())
    return "\n".join(
        [
            *rows_of(f"{heads}|variance, of real", [cells]),
            "",
            f"{report['data']}; pictures: {parts}; {machine_of(report)}, "
            f"{minutes(report['seconds'])}.",
            "",
            "![emoji drawn by category](../benchmarks/results/emoji_samples.png)",
            "",
            "A row a category: " + ", ".join(report["categories"]) + ".",
        ]
    )
