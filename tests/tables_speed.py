"""Tables of what takes how long: training steps, the search, decoding."""

from pathlib import Path

from committed import NONE_YET, result, rows_of

DTYPES = ("float32", "bf16")
GRID_ROUTE = (
    ("clock_grid", "steps"),
    ("clock_grid_sharp", "steps"),
    ("clock_grid", "samples"),
    ("clock_grid_prior", "steps"),
)


def step_results(name="vqvae_step.json"):
    report = result(name)
    if report is None:
        return NONE_YET
    machine = report["machine"]
    place = f"{machine['cpu']} ({', '.join(machine['flags'])}), {report['threads']} thread(s)"
    if "cuda" in name:
        place = f"{report['device']}, {machine['cpu']} beside it"
    lines = [f"{place}, {report['rounds']} rounds, torch {report['torch']}.", ""]
    heads = (
        "hidden|pythae float32 ms|ours float32|pythae bf16|ours bf16"
        "|ours bf16 against pythae float32|at equal bf16|at equal float32"
    )
    rows = []
    for hidden, row in report["hidden"].items():
        times = [
            row["milliseconds"][f"{who}, {kind}"]
            for kind in ("float32", "bf16")
            for who in ("pythae", "ours")
        ]
        ratios = [
            f"{row[name]:.2f}x"
            for name in ("against pythae float32", "at equal bf16", "at equal float32")
        ]
        rows.append([hidden, *times, *ratios])
    return "\n".join([*lines, *rows_of(heads, rows)])


def bound(machine):
    """On how many processors a run was allowed, if its result says so: older ones do not."""
    if "cores" not in machine:
        return ""
    return (
        " pinned to one core" if machine["cores"] == 1 else f", {machine['cores']} cores to run on"
    )


def mismatch_results():
    """Wrong codes of each contestant on each kind of data; of our paths together."""
    report = result("mismatches.json")
    if report is None:
        return NONE_YET
    others = ["cdist", "expanded", *report["peers"]]
    peers = ", ".join(f"{name} {release}" for name, release in report["peers"].items())
    machine = report["machine"]
    tables = report["tables"]
    paths = [name for name in tables[0]["kinds"]["gaussian"] if name not in others]
    absent = "; ".join(f"{name}, {why}" for name, why in report["absent"].items()) or "none"
    lines = [
        f"{machine['cpu']} ({', '.join(machine['flags'])}), torch {machine['torch']}; {peers}. "
        f"Our paths together: {', '.join(paths)}. Not run: {absent}.",
        "",
    ]
    for table in tables:
        rows = []
        for kind, found in table["kinds"].items():
            wrong = sum(found[name]["wrong"] for name in paths)
            cells = [_wrong(found[name]) if name in found else "" for name in others]
            rows.append([kind, found[paths[0]]["rows"], wrong, *cells])
        heads = [f"K={table['codes']} D={table['dim']}", "rows", "ours", *others]
        lines += [*rows_of(heads, rows), ""]
    return "\n".join(lines).strip()


def _wrong(found):
    if not found["wrong"]:
        return 0
    share = f"{100 * found['wrong'] / found['rows']:.2f} %"
    return f"{found['wrong']} ({share})" + (
        f", {found['as near']} as near" * bool(found["as near"])
    )


def bench_results(*names):
    """Milliseconds, how many times our default path, and memory, for each shape of a bench."""
    lines = []
    for name, report in ((name, result(name)) for name in names if result(name)):
        machine = report["machine"]
        what = report["what"][0].upper() + report["what"][1:]
        lines += [
            f"**{what}.** {machine['cpu']} ({', '.join(machine['flags'])}), "
            f"{machine['threads']} thread(s){bound(machine)}, {report['clock']}, "
            f"torch {machine['torch']}; "
            f"our path: {machine['kernels'].split()[0]}.",
            "",
            f"![milliseconds a contestant](../benchmarks/results/{Path(name).stem}.png)",
            "",
        ]
        for row in report["rows"]:
            ran = {name: it for name, it in row["contestants"].items() if isinstance(it, dict)}
            ours = ran.get("ours") or ran[machine["kernels"].split()[0]]
            num, size, dim = row["shape"]
            rows = []
            for name, it in row["contestants"].items():
                if name not in ran:
                    rows.append([name, it, "", "", "", ""])
                    continue
                times = [f"{it[key]:.2f}" for key in ("median_ms", "best_ms")]
                ratio = f"{it['median_ms'] / ours['median_ms']:.2f}"
                rows.append([name, *times, it["rounds"], ratio, it.get("megabytes", "")])
            heads = f"N={num} K={size} D={dim}|median ms|best ms|turns|times ours|MB"
            lines += [*rows_of(heads, rows), ""]
    return "\n".join(lines).strip() or NONE_YET


def gpu_results():
    """Milliseconds on a graphics processor, wrong codes of a sample, and memory."""
    report = result("gpu_nearest.json")
    if report is None:
        return NONE_YET
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [f"{report['device']}, {versions}; medians of interleaved rounds, CUDA events.", ""]
    for shape in report["shapes"]:
        few, many = (f"{100 * shape['rows in doubt'][name]:.2g} %" for name in ("4", "all"))
        rows = []
        for name, it in shape["contestants"].items():
            if "skipped" in it:
                rows.append([name, it["skipped"], "", "", ""])
                continue
            wrong = "" if it["mismatches"] is None else it["mismatches"]
            rows.append([name, it["median ms"], it["times ours"], wrong, it["peak MB"]])
        heads = (
            f"N={shape['N']:,} K={shape['K']:,} D={shape['D']}"
            f"|median ms|times ours|wrong of {shape['sample']:,}|MB"
        )
        told = f"Compared in float64: {few} of the rows with four codes, {many} with all."
        lines += [*rows_of(heads, rows), "", told, ""]
    return "\n".join(lines).strip()


def vae_step_results():
    report = result("vae_step.json")
    if report is None:
        return NONE_YET
    machine, cpu, wall = (
        report[name] for name in ("machine", "processor_milliseconds", "wall_milliseconds")
    )
    lines = [
        f"{machine['cpu']} ({', '.join(machine['flags'])}), {machine['threads']} thread(s), "
        f"{report['rounds']} rounds, torch {machine['torch']}.",
        "",
    ]
    rows = []
    for name, value in cpu.items():
        ratio = cpu["pythae, float32"] / value
        rows.append([name, f"{value:.2f}", f"{wall[name]:.2f}", f"{ratio:.2f}x"])
    heads = "loop|processor ms a step|wall ms|pythae's processor ms over it"
    return "\n".join([*lines, *rows_of(heads, rows)])


def decode_results():
    report = result("decode.json")
    if report is None:
        return NONE_YET
    lines = [
        f"{report['machine']['cpu']}, one thread, {report['rounds']} rounds, "
        f"torch {report['torch']}, "
        f"transformers {report['transformers']}; seconds of computing for 256 tokens.",
        "",
    ]
    heads = "batch|ours float32|ours bf16|transformers float32|transformers bf16|best against best"
    rows = []
    for num, row in report["batches"].items():
        names = [f"{who}, {kind}" for who in ("ours", "transformers") for kind in DTYPES]
        times = [f"{row['seconds'][name]:.3g}" for name in names]
        rows.append([num, *times, f"{row['ratio_best_dtype']:.2f}x"])
    return "\n".join([*lines, *rows_of(heads, rows)])


def minutes_results():
    report = result("training_minutes.json")
    if report is None:
        return NONE_YET
    counts = sorted({row["threads"] for row in report["rows"]})
    spent, units = {}, ("steps", "samples")
    for row in report["rows"]:
        unit = next(unit for unit in units if unit in row)
        key = row["recipe"], f"{row[unit]:,} {unit}{' encoded' if unit == 'samples' else ''}"
        spent.setdefault(key, {})[row["threads"]] = row["minutes"]
    rows = [
        [f"`{name}`", work, *(f"{minutes[count]:.1f}" for count in counts)]
        for (name, work), minutes in spent.items()
    ]
    heads = ["recipe", "work", *(f"minutes, {count} thread(s)" for count in counts)]
    measured = f"{report['measured_steps']} steps"
    if any("samples" in row for row in report["rows"]):
        measured += f" or {report['measured_samples']:,} samples"
    told = f"{report['machine']['cpu']}, calculated from {measured} of each, alone on the machine."
    route = [
        row
        for row in report["rows"]
        if any(row["recipe"] == name and unit in row for name, unit in GRID_ROUTE)
    ]
    sums = {n: sum(row["minutes"] for row in route if row["threads"] == n) for n in counts}
    whole = " and ".join(f"{value:.1f} minutes with {n} thread(s)" for n, value in sums.items())
    told += f" So calculated, the grid route with its encoding takes {whole}."
    return "\n".join([*rows_of(heads, rows), "", told])
