"""The parts of the documents that are made: trees from the code, tables from benchmarks/results."""

from committed import ROOT
from tables_clock import clock_prior_results, clock_results, llm_results, sampler_results
from tables_code import ladder_table, source_tree
from tables_continuous import (
    ae_vs_vae_results,
    beta_sweep_results,
    disent_results,
    latents_results,
    paper_results,
    probe_results,
    rung_results,
    shapes_results,
)
from tables_speed import (
    bench_results,
    decode_results,
    gpu_results,
    minutes_results,
    mismatch_results,
    step_results,
    vae_step_results,
)
from tables_tokens import (
    digits_results,
    emoji_results,
    fashion_results,
    peer_quality_results,
    prior_results,
    usage_results,
)

README = ROOT / "README.md"
GENERATED = {
    README: {"ladder": ladder_table, "tree": lambda: source_tree(is_short=True)},
    ROOT / "docs" / "architecture.md": {"tree": source_tree},
    ROOT / "docs" / "continuous.md": {
        "papers": paper_results,
        "latents": latents_results,
        "ae-vs-vae": ae_vs_vae_results,
        "beta-sweep": beta_sweep_results,
        "probe": probe_results,
    },
    ROOT / "docs" / "disentanglement.md": {
        "disent": disent_results,
        "rung": rung_results,
        "shapes": shapes_results,
    },
    ROOT / "docs" / "llm.md": {"llm": llm_results},
    ROOT / "docs" / "clock.md": {
        "results": clock_results,
        "sampler": sampler_results,
        "minutes": minutes_results,
    },
    ROOT / "docs" / "nearest.md": {
        "nearest": lambda: bench_results("nearest.json", "nearest_large.json", "quantizer.json"),
        "gpu": gpu_results,
        "mismatches": mismatch_results,
    },
    ROOT / "docs" / "quantizers.md": {
        "digits": digits_results,
        "usage": usage_results,
        "peers": peer_quality_results,
    },
    ROOT / "docs" / "priors.md": {
        "priors": prior_results,
        "emoji": emoji_results,
        "clock-priors": clock_prior_results,
        "decode": decode_results,
    },
    ROOT / "docs" / "results.md": {
        "fashion": fashion_results,
        "step": step_results,
        "step-gpu": lambda: step_results("vqvae_step_cuda.json"),
        "vae-step": vae_step_results,
    },
}
