"""Sentences and clocks in one model: the rows, a tiny training, the commands."""

import io
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qvae.autoencoder import build_autoencoder
from qvae.cli.main import main
from qvae.config import load_recipe
from qvae.data.clock_sentences import HELD_OUT, PHRASINGS, parse_sentence, phrase
from qvae.data.clock_times import TRAIN_TIMES
from qvae.data.clocks import Clocks
from qvae.errors import DataError, FormatError, UsageError
from qvae.llm.clock_llm import open_clock_llm
from qvae.llm.clock_rows import ClockRows
from qvae.llm.clock_text import number_features
from qvae.llm.llama import Llama
from qvae.llm.rows import IGNORED, Picture, from_row
from qvae.llm.tables import SharedTable
from qvae.llm.vocabulary import Vocabulary
from qvae.runs.loading import open_run
from qvae.runs.tokens import encode_data
from qvae.runs.training import train_recipe
from qvae.tokenizer import Tokenizer
from qvae.types import Batch

_TINY = [
    ("llm.num_layers", 1), ("llm.dim", 16), ("llm.num_heads", 2), ("llm.hidden_dim", 16),
    ("train.steps", 2), ("train.batch_size", 4), ("train.eval_every", 2),
    ("train.eval_samples", 8),
]  # fmt: skip


@pytest.fixture(scope="module", name="tokens")
def tokens_of_clocks(tmp_path_factory):
    torch.manual_seed(0)
    parts = {
        "encoder": {"name": "patch", "patch": 16, "hidden": 16},
        "bottleneck": {"name": "fsq", "levels": [8, 4]},
        "decoder": {"name": "patch", "patch": 16, "hidden": 16},
        "likelihood": {"name": "gaussian"},
    }
    path = tmp_path_factory.mktemp("data") / "tokens"
    tokenizer = Tokenizer(build_autoencoder(parts, Clocks.spec))
    data = Clocks(size=48, valid_size=16)
    data.test = data.valid
    encode_data(tokenizer, data, path)
    return path


@pytest.fixture(scope="module", name="run")
def a_trained_run(tokens, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "llm"
    recipe = load_recipe("llm_clock", [("data.path", str(tokens)), *_TINY])
    train_recipe(recipe, run=path, progress=False, device="cpu")
    return path


# -- rows --------------------------------------------------------------------------------------


def test_rows_say_what_the_clock_shows_and_never_a_held_out_pair(tokens):
    data = ClockRows(path=tokens, words_share=0.2, has_rows=True, repeat=2)
    split, names = data.train(), list(PHRASINGS)
    held_out = {phrase(m, names[i]) for m in range(720) for i in HELD_OUT[m]}
    batch = split.batch(np.arange(len(split))[::11])
    told, kinds = data.tokens.train().batch(np.arange(48)), set()
    for index, (ids, labels) in zip(batch.ids.tolist(), batch.x.numpy(), strict=True):
        end = len(ids) - int((ids[::-1] != data.text.pad_token_id).argmax())
        row = {"input_ids": ids[:end], "labels": labels[:end]}
        assert (ids[end:] == data.text.pad_token_id).all() and (labels[end:] == IGNORED).all()
        parts = from_row(row, data.vocabulary, data.text)
        pictures = [part for part in parts if isinstance(part, Picture)]
        text = " ".join(part.text for part in parts if not isinstance(part, Picture))
        assert data.text.unk_token_id not in ids
        kinds.add((len(pictures), isinstance(parts[0], Picture)))
        if not pictures:
            continue
        clock = index % 48
        assert pictures[0].tokens.tolist() == told.x[clock].tolist()
        left, _, right = text.partition(" = ")
        minutes = round(float(told.cond[clock, 0]) * 60) % 720
        for side in (left, right) if right else (left.partition(" =")[0],):
            found = parse_sentence(side)
            assert found is not None and found[0] == minutes, text
        sentence = right if isinstance(parts[0], Picture) else left
        core = sentence.partition(",")[0].replace("a quarter", "quarter")
        assert core not in held_out and core.replace(" am", " pm") not in held_out
        assert minutes in TRAIN_TIMES
    assert kinds == {(0, False), (1, False), (1, True)}


def test_rows_are_a_function_of_their_index(tokens):
    first, second = ClockRows(path=tokens).train(), ClockRows(path=tokens).train()
    together = first.batch(np.array([5, 53, 101])).x
    alone = second.batch(np.array([53])).x
    length = alone.shape[2]
    assert torch.equal(together[1, :, :length], alone[0])
    other = ClockRows(path=tokens, seed=1).train().batch(np.array([53])).x
    assert other.shape != alone.shape or not torch.equal(other, alone)


def test_tokens_of_other_clocks_are_refused(tokens):
    with pytest.raises(DataError, match="is not of the clocks of seed 3"):
        ClockRows(path=tokens, clock_seed=3).train()
    with pytest.raises(ValueError, match="draw_share=0.9, words_share=0.2"):
        ClockRows(path=tokens, draw_share=0.9, words_share=0.2)


# -- the model ---------------------------------------------------------------------------------


def toy(**options):
    words = Vocabulary(
        codebook_sizes=(4, 3), grid=(2,), tokenizer_hash="", text_size=6, repeat=2, has_rows=False
    )
    torch.manual_seed(0)
    features = torch.zeros(6, 2)
    features[4:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    model = Llama(
        words, features=features, num_layers=1, dim=8, num_heads=2, hidden_dim=8, **options
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, words


def test_the_loss_is_the_cross_entropy_among_what_the_grammar_allows():
    model, words = toy(text_weight=3.0)
    span = words.to_ids(np.array([3, 4, 0, 6])).tolist()
    ids = torch.tensor([[1, 5, 2, *span, 3, 0]])
    labels = torch.tensor([[-100, -100, 2, *span, 3, -100]])
    batch = Batch(x=torch.stack([ids, labels], 1))
    model.eval()
    logits, low, high = model.logits(ids)[0].detach(), *words.span
    code = sum(
        torch.nn.functional.cross_entropy(
            logits[2 + place, low[place] : high[place]], torch.tensor(span[place] - low[place])
        )
        for place in words.code_places
    )
    text = sum(
        torch.nn.functional.cross_entropy(logits[at, : words.text_size + 1], labels[0, at + 1])
        for at in (1, 2, 2 + len(span))
    )
    loss = model(batch)
    assert torch.allclose(loss.nll[0], code + text, atol=1e-5)
    assert math.isclose(loss.metrics["nats_per_code"].item(), code.item() / 4, rel_tol=1e-5)
    model.train()
    assert torch.allclose(model(batch).total, code + 3 * text, atol=1e-5)


def test_written_out_rows_are_what_a_lookup_gives():
    for text_first in (True, False):
        words = Vocabulary(
            codebook_sizes=(4, 3), grid=(2, 2), tokenizer_hash="", text_size=6, repeat=3,
            is_text_first=text_first, has_rows=True,
        )  # fmt: skip
        table = SharedTable(words, dim=5, features=torch.eye(6)[:, :2])
        ids = torch.arange(words.size)
        assert torch.allclose(table.rows(), table(ids))
        # A text row with features is a map of them and nothing else.
        assert torch.equal(table.words()[0], table.feature_map[0])
        assert torch.equal(table.words()[3], table.text[3])


def test_what_is_padded_or_behind_changes_nothing():
    model, words = toy()
    model.eval()
    ids = torch.randint(0, words.size, (2, 9), generator=torch.manual_seed(0))
    longer = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    assert torch.allclose(model.logits(ids), model.logits(longer)[:, :9], atol=1e-6)


def test_bfloat16_training_is_close_to_float32():
    model, words = toy()
    span = words.to_ids(np.array([3, 4, 0, 6])).tolist()
    ids = torch.tensor([[1, 5, *span, 3], [1, *span, 2, 3]])
    batch = Batch(x=torch.stack([ids, ids], 1))
    loss = model(batch)
    loss.total.backward()
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
    rough.total.backward()
    assert torch.isclose(rough.total, loss.total, rtol=0.02)
    flat = [torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]),
            torch.cat([g.flatten() for g in exact.values()])]  # fmt: skip
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


def test_the_gradients_of_norm_and_rotation_are_right():
    from qvae.llm.layers import Rotation, rms_norm, rotate

    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(4, 3, dtype=torch.float64)
    turn = Rotation(angles.cos(), angles.sin())
    assert torch.autograd.gradcheck(lambda x: rotate(x, turn), x)
    assert torch.autograd.gradcheck(rms_norm, x)
    exact = torch.nn.functional.rms_norm(x.float(), (6,), eps=1e-5)
    assert torch.allclose(rms_norm(x.float()), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 9}, "dim is a multiple of num_heads"),
        ({"dim": 6}, "a head's width, 3, must be even"),
        ({"rope_theta": 1.0}, "rope_theta=1.0"),
        ({"swap_prob": 1.0}, "swap_prob=1.0"),
    ],
)
def test_a_llama_refuses_wrong_sizes(options, message):
    words = Vocabulary(codebook_sizes=(4,), grid=(2,), tokenizer_hash="", text_size=6)
    with pytest.raises(ValueError, match=message):
        Llama(words, **{"num_heads": 2, **options})


def test_a_fresh_model_looks_from_codes_at_numbers():
    """The first layer's first head gives the two numbers of a prompt most of its weight."""
    from qvae.llm.layers import rms_norm, rotate, rotation

    torch.manual_seed(0)
    words = Vocabulary(
        codebook_sizes=(32,), grid=(4, 4), tokenizer_hash="", text_size=30, repeat=16
    )
    features = torch.zeros(30, 12)
    features[-11:, 0], features[-11:, 1:] = 1.0, torch.eye(11)
    model = Llama(words, features=features, dim=96, num_heads=6, num_layers=1, hidden_dim=96)
    span = words.to_ids(np.arange(16)).tolist()
    ids = torch.tensor([[1, 5, 6, 7, 8, 9, 4, 20, 25, *span]])
    x = rms_norm(model.embedding(ids))
    layer, angles = (
        model.layers[0],
        rotation(0, len(ids[0]), head_dim=16, theta=1000.0, device="cpu", dtype=torch.float32),
    )
    query, key = (part[..., :16] for part in layer.qkv(x).chunk(3, -1)[:2])
    scores = rotate(query, angles)[0, -9:-1] @ rotate(key, angles)[0].T / 4
    weights = scores.softmax(-1)
    assert (weights[:, 7:9].sum(-1) > 0.6).all() and (weights[:, 7:9] > 0.15).all()


def test_swapped_codes_stay_in_their_codebook_and_text_stays():
    model, words = toy(swap_prob=0.9)
    generator = np.random.default_rng(0)
    tokens = np.stack([generator.integers(0, 4, 40), generator.integers(4, 7, 40)] * 2, 1)
    ids = torch.from_numpy(words.to_ids(tokens))
    ids = torch.cat([torch.full((40, 1), 3), ids], 1)
    swapped = model._swap(ids)
    assert (swapped != ids).any() and torch.equal(swapped[:, 0], ids[:, 0])
    again = words.to_tokens(swapped[:, 1:].numpy())
    assert np.array_equal(words.to_ids(again), swapped[:, 1:].numpy())


def test_numbers_have_features_and_nothing_else_has():
    features = number_features(4)
    assert (features.abs().sum(1) > 0).sum() == 60 + 31 and features.shape[1] == 9 + 31
    numbers = features[features[:, 0] > 0]
    assert torch.allclose(numbers.square().sum(1), torch.tensor(8.0))
    assert (numbers[:, 0] == 2).all()
    assert torch.linalg.matrix_rank(numbers) == 9 + 31
    assert number_features(0).shape[1] == 0
    with pytest.raises(ValueError, match="harmonics=31"):
        number_features(31)


# -- a run -------------------------------------------------------------------------------------


def test_a_run_draws_and_reads(run):
    llm = open_clock_llm(run)
    sentences = ["ten past ten", "22:10", "a quarter to four, on a green face"]
    together, notes = llm.draw(sentences, seed=3)
    assert together.shape == (3, 3, 64, 64) and len(notes) == 3
    alone, _ = llm.draw(sentences[:1], seed=3)
    assert torch.allclose(together[0], alone[0], atol=1e-5)
    other, _ = llm.draw(sentences[:1], seed=4, temperature=1.0, guidance=1.0)
    assert not torch.equal(other[0], alone[0])
    answers = llm.read(Clocks(size=3).train().batch(np.arange(3)).x)
    assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)


def test_a_draw_shows_a_bar_on_a_terminal(run, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    words = ["llm", "draw", "22:10", "--run", str(run), "-o", str(tmp_path / "x.png")]
    assert main(words) == 0
    num = open_clock_llm(run).tokenizer.num_tokens
    assert "draw: 100%" in screen.getvalue() and f"{num}/{num}" in screen.getvalue()


def test_what_the_model_cannot_be_told_is_refused(run):
    llm = open_clock_llm(run)
    cases = [
        ("ten past noon", "'noon' is no word of this model"),
        ("ten <|v_begin|>", "holds <.v_begin.>"),
        ("ten <|eos|>", "'<.eos.>' is no word of this model"),
        ("ten = 4:10", "'=' is no word of this model"),
        ("", "must have 1 to 63"),
        ("ten " * 70, "sentence of 7. tokens: must have 1 to 63"),
    ]
    for sentence, message in cases:
        with pytest.raises(UsageError, match=message):
            llm.draw([sentence])
    with pytest.raises(ValueError, match="temperature=-1"):
        llm.draw(["ten past ten"], temperature=-1.0)


@pytest.mark.parametrize("sentences", ["ten past ten", ["ten past ten", 3]], ids=str)
def test_what_is_no_list_of_sentences_is_refused(as_users_call, run, sentences):
    """A string is a sequence of letters, which are no words of the model."""
    text = re.escape(f"sentences={sentences!r}: must be a list of strings")
    with pytest.raises(UsageError, match=f"^{text}$"):
        open_clock_llm(run).draw(sentences)


def test_a_drawing_depends_on_its_sentence_its_seed_and_its_number_alone(run):
    """Whatever stands around it: prompts of one length are decoded together."""
    llm = open_clock_llm(run)
    sentences = ["ten past ten", "22:10", "a quarter to four, on a green face", "4:05 pm"]
    together, notes = llm.draw(sentences, seed=3)
    for number in range(4):
        others = ["five past four" if i != number else s for i, s in enumerate(sentences)]
        found, again = llm.draw(others[: number + 1], seed=3)
        assert torch.equal(found[number], together[number]) and again[number] == notes[number]
    assert not torch.equal(llm.draw(sentences, seed=4)[0], together)


def test_another_image_tokenizer_beside_the_model_is_refused(run, tmp_path):
    import shutil

    from qvae.pretrained import load_model

    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("state"))
    model = load_model(copy / "tokenizer")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    Tokenizer(model).save_pretrained(copy / "tokenizer")
    with pytest.raises(FormatError, match="the language model was made for"):
        open_clock_llm(copy)
    with pytest.raises(UsageError, match="is a language model; see qvae llm"):
        open_run(run)
    with pytest.raises(FormatError, match="holds no language model"):
        open_clock_llm(tmp_path)


def test_the_commands(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "clock.png"
    words = ["llm", "draw", "22:10", "--run", str(run), "-o", str(target), "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["drawings"][0]["sentence"] == "22:10"
    with Image.open(target) as picture:
        assert picture.size == (64, 64)
    assert main(["llm", "draw", "22:10", "ten ten", "--run", str(run), "-o", "many"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list(Path("many").iterdir())) == 2
    assert main(["llm", "read", str(target), "--run", str(run)]) == 0
    assert capsys.readouterr().out.startswith(str(target))
    Path("notes.png").write_text("no picture")
    assert main(["llm", "read", "notes.png", str(target), "no.png", "--run", str(run)]) == 3
    out, errors = capsys.readouterr()
    assert out.startswith(str(target)) and len(out.splitlines()) == 1
    assert "qvae: notes.png: " in errors and "qvae: no.png: " in errors
    wrong = [
        (["llm", "paint"], "'paint': qvae llm takes draw or read"),
        (["llm", "draw", "22:10"], "the following arguments are required: -o"),
        (["llm", "draw", "22:10", "-o", "x.png"], "--run: needs the folder of a run"),
        (["llm", "draw", "a", "b", "-o", "x.png"], "a file holds one clock"),
        (["llm", "draw", "noon", "-o", "x.png", "--run", str(run)], "'noon' is no word"),
    ]
    for words, message in wrong:
        assert main(words) == 2, words
        assert message in capsys.readouterr().err
    assert main(["llm"]) == 0 and "qvae llm draw" in capsys.readouterr().out
    assert not Path("x.png").exists()


def test_a_recipe_trains_one_thing(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text("data: {name: clock_rows, path: x}\nllm: llama\nprior: transformer\n")
    with pytest.raises(UsageError, match="needs one of model, prior, llm, has prior and llm"):
        load_recipe(path)
    path.write_text("data: {name: clocks}\nllm: llama\n")
    with pytest.raises(UsageError, match="a language model is trained on rows of ids"):
        train_recipe(load_recipe(path), run=tmp_path / "run", progress=False)
    with pytest.raises(UsageError, match="llm.dims: unknown key, did you mean dim"):
        load_recipe("llm_clock", [("llm.dims", 3), ("data.path", "x")])


# -- the benchmark -----------------------------------------------------------------------------


@pytest.fixture(name="benchmark")
def the_benchmark(monkeypatch):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    import llm_clock

    return llm_clock


def test_requests_are_the_pairs_that_were_held_out(benchmark):
    minutes, sentences = benchmark.requests()
    assert len(sentences) == len(set(sentences)) == 1440
    held_out = {phrase(m, list(PHRASINGS)[i]) for m in range(720) for i in HELD_OUT[m]}
    for minute, sentence in zip(minutes.tolist(), sentences, strict=True):
        assert parse_sentence(sentence)[0] == minute
        assert sentence.partition(",")[0] in held_out
    assert {sentence.partition(",")[0] for sentence in sentences} == held_out


def test_answers_are_scored_by_their_sentences(benchmark):
    minutes = np.array([610, 610, 611, 250, 719])
    answers = [
        "10:10 = ten past ten",
        "10:10 = 10:11",
        "10:11 = nonsense",
        "",
        "11:59 = exactly twelve",
    ]
    found = benchmark.score_answers(answers, minutes)
    assert found["splits"]["all"] == {"n": 5, "exact": 0.2, "within_1": 0.6, "gross": 0.4}
    assert found["splits"]["block"]["gross"] == 1.0
    assert found["grammatical"] == 0.6 and found["sentence_agrees_with_time"] == 0.2


def test_the_second_renderer_shows_the_time_in_another_hand(benchmark):
    from second_renderer import render_second

    from qvae.data.clock_renderer import render_clocks
    from qvae.data.clock_style import sample_styles
    from qvae.metrics.clock_reader import read_clocks
    from qvae.metrics.clock_score import circular_error

    minutes = np.arange(0, 720, 9)
    pictures = render_second(minutes, seed=0)
    assert pictures.shape == (80, 64, 64, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures[:2], render_second(minutes[:2], seed=0))
    error = circular_error(read_clocks(pictures).minutes, minutes, period=720)
    assert np.median(error) < 1, "the geometric reader, which knows other hands, still reads most"
    first = render_clocks(minutes.astype(float), sample_styles(80, seed=0))
    assert np.abs(first.astype(float) - pictures).mean() > 20


def test_a_run_is_scored(run, benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_TIMES", np.array([0, 90, 250, 610]))
    benchmark.score(run, seed=0, output=tmp_path / "report.json", styles=1, guidance=1.5)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["drawing"]["requests"] == 8
    assert report["drawing"]["splits"]["all"]["n"] == 8
    assert report["reading"]["splits"]["all"]["n"] == 4
    assert report["sampler"]["guidance"] == 1.5


def test_every_sampler_that_was_tried_is_written_down(run, benchmark, tmp_path):
    output = tmp_path / "tuning.json"
    grid = {"temperatures": [0.5, 0.9], "guidances": [1.0, 2.0]}
    benchmark.tune(run, num=6, output=output, **grid)
    report = json.loads(output.read_text())
    pairs = [(row["temperature"], row["guidance"]) for row in report["tried"]]
    assert pairs == [(0.5, 1.0), (0.5, 2.0), (0.9, 1.0), (0.9, 2.0)]
    best = max(report["tried"], key=lambda row: (row["within_1"], -row["gross"]))
    assert report["best"].items() <= best.items()
    assert report["tuned_on"] == "6 sentences that training had"
    llm = benchmark.open_clock_llm(run)
    assert benchmark.about(llm, run).items() <= report.items()  # as a score says it


def test_the_export_of_a_run_computes_the_same_without_this_package(run, benchmark, tmp_path):
    """In another interpreter, where nothing of ours is imported; the command makes it a new one."""
    benchmark.check(run, python=Path(sys.executable), output=tmp_path / "export.json")
    report = json.loads((tmp_path / "export.json").read_text())
    assert report["largest_logit_difference"] < 1e-5
    assert report["loaded_as"][0] == "LlamaForCausalLM" and report["environment"] == "given"
    assert set(report["versions"]) == {"torch", "transformers", "safetensors"}


def test_the_document_shows_what_is_known_of_the_run_that_was_scored(monkeypatch):
    import tables_clock

    report = tables_clock.result("llm_clock.json")
    tried = [{"temperature": 0.7, "guidance": 1.5, "dial_right": 1, "within_1": 0.5, "gross": 0}]
    tuning = {"training_seconds": report["training_seconds"], "tuned_on": "all", "tried": tried}
    others = {**tuning, "training_seconds": 1.0}
    for found, text in (
        (None, "was not kept for this run."),
        (others, "was not kept for this run."),
        (tuning, "| 0.7 | 1.5 | 100.0% | 50.0% | 0.0% |"),
    ):
        files = {"llm_clock.json": report, "llm_clock_tuning.json": found}
        monkeypatch.setattr(tables_clock, "result", files.get)
        assert tables_clock.llm_results().endswith(text)
    export = {"environment": "fresh", "loaded_as": ["A", "B"], "versions": {"torch": "2"}}
    export |= {"largest_logit_difference": 2e-6, "training_seconds": report["training_seconds"]}
    files["llm_export.json"] = export
    text = "in a fresh environment with torch 2: loads as A and B, logits within 2.0e-06 of ours."
    assert tables_clock.llm_results().endswith(text)
    export["training_seconds"] = 1.0
    assert "fresh" not in tables_clock.llm_results(), "of another run"
