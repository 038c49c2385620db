"""With ``transformers``: extending a model, generating under the grammar, the exported folder."""

import shutil

import numpy as np
import pytest
import torch

from qvae.errors import FormatError, UsageError
from qvae.llm import GrammarProcessor, Picture, Vocabulary, extend, parse
from qvae.llm.decoding import complete_text, draw_codes
from qvae.llm.extension import fit_rows
from qvae.llm.folder import load_llm, save_llm
from qvae.llm.llama import Llama
from qvae.llm.words import SPECIAL, WordTokenizer, import_tokenizers, text_tokens
from qvae.priors.digits import token_ranges

transformers = pytest.importorskip("transformers")
WORDS = ["=", ",", ":10", "ten", "past", "10"]


def vocabulary(**options):
    settings = {"codebook_sizes": (8, 5), "grid": (2, 2), "tokenizer_hash": "ab", "text_size": 0}
    return Vocabulary(**{**settings, **options})


def a_text_tokenizer():
    """A fast tokenizer of a few words, as a pretrained one would be."""
    library = import_tokenizers()
    ids = {token: i for i, token in enumerate(text_tokens(WORDS))}
    plain = library.Tokenizer(library.models.WordLevel(ids, unk_token="<|unk|>"))
    plain.pre_tokenizer = library.pre_tokenizers.Metaspace()
    plain.decoder = library.decoders.Metaspace()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **names)


def a_model(kind="llama", *, vocab_size, is_tied=False):
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "phi":  # its head has a bias
        config = transformers.PhiConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, **sizes,
        )  # fmt: skip
        return transformers.PhiForCausalLM(config).eval()
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=is_tied, **sizes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


MODELS = {
    "untied": {},
    "tied": {"is_tied": True},
    "bias": {"kind": "phi"},
}


@pytest.mark.parametrize("padding", [0, 3, 50])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("has_codebook", [False, True])
def test_extend_leaves_every_row_that_was_there(name, padding, has_codebook, tmp_path):
    tokenizer = a_text_tokenizer()
    known = len(tokenizer)
    model = a_model(vocab_size=known + padding, **MODELS[name])
    text = torch.tensor([[1, 5, 6, 7]])
    tables = [model.get_input_embeddings, model.get_output_embeddings]
    before = [table().weight.detach()[:known].clone() for table in tables]
    logits = model(text).logits[..., :known].detach().clone()
    codebook = torch.randn(13, 3) if has_codebook else None
    words = extend(tokenizer, model, vocabulary(has_rows=True), codebook=codebook, multiple=8)

    assert words.text_size == known and words.size == known + 16
    num_rows = model.get_input_embeddings().weight.shape[0]
    assert num_rows >= words.size and model.config.vocab_size == num_rows
    for table, rows in zip(tables, before, strict=True):
        assert torch.equal(table().weight[:known], rows), "a pretrained row was changed"
    assert torch.allclose(model(text).logits[..., :known], logits, atol=1e-6)
    is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert is_tied == (name == "tied")
    assert tokenizer.convert_tokens_to_ids(words.names) == list(range(known, words.size))

    ids = torch.from_numpy(words.to_ids(np.array([[0, 8, 7, 12, 3, 9, 1, 10]])))
    expected = model(ids).logits.detach()
    assert expected.isfinite().all()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    spoken = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, expected)
    assert Vocabulary.from_pretrained(tmp_path) == words
    written = "".join(words.names[i - known] for i in ids[0].tolist())
    assert spoken(written, add_special_tokens=False)["input_ids"] == ids[0].tolist()


def test_extend_refuses_what_cannot_be(tmp_path):
    tokenizer = a_text_tokenizer()
    model = a_model(vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match=r"codebook: shape \(3, 2\), needs \(13, D\)"):
        extend(tokenizer, model, vocabulary(), codebook=torch.randn(3, 2))
    with pytest.raises(ValueError, match="is_text_first=False"):
        extend(tokenizer, model, vocabulary(is_text_first=False))
    extend(tokenizer, model, vocabulary())
    with pytest.raises(ValueError, match="has <.v:00000.> already"):
        extend(tokenizer, model, vocabulary())
    transformers.LlamaConfig(vocab_size=8).save_pretrained(tmp_path)
    with pytest.raises(FormatError, match="no image tokens in it"):
        Vocabulary.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"codebook": torch.full((13, 2), torch.nan)}, "codebook: holds NaN or Inf"),
        ({"codebook": torch.full((13, 2), torch.inf)}, "codebook: holds NaN or Inf"),
        ({"codebook": torch.zeros(13, 0)}, r"codebook: shape \(13, 0\), needs \(13, D\)"),
        ({"codebook": [[1.0, 2.0]] * 13}, "codebook: must be a tensor, came list"),
        ({"multiple": 2.5}, "multiple=2.5: must be a whole number >= 1"),
        ({"multiple": 0}, "multiple=0: must be a whole number >= 1"),
    ],
    ids=["nan", "inf", "empty", "list", "half", "zero"],
)
def test_a_refused_extension_changes_nothing(as_users_call, options, text):
    """Not half of it: a tokenizer that has the tokens already cannot be extended again."""
    tokenizer = a_text_tokenizer()
    known = len(tokenizer)
    model = a_model(vocab_size=known)
    with pytest.raises(ValueError, match=f"^{text}"):
        extend(tokenizer, model, vocabulary(), **options)
    assert len(tokenizer) == known == model.get_input_embeddings().weight.shape[0]


def test_fitted_rows_keep_who_is_near_whom_and_look_like_words():
    torch.manual_seed(0)
    codebook, rows = torch.randn(64, 3), torch.randn(200, 32) * 0.1 + 0.3
    fitted = fit_rows(codebook, rows)
    spread = (rows - rows.mean(0)).square().sum(1).mean()
    assert torch.allclose(fitted.mean(0), rows.mean(0), atol=1e-5)
    assert torch.isclose((fitted - fitted.mean(0)).square().sum(1).mean(), spread, rtol=1e-4)
    design = torch.cat([codebook, torch.ones(64, 1)], 1)
    error = design @ torch.linalg.lstsq(design, fitted).solution - fitted
    assert error.abs().max() < 1e-4, "it is an affine map of the codes"
    flat = fit_rows(torch.ones(4, 3), rows)
    assert torch.allclose(flat, rows.mean(0).expand(4, -1))


@pytest.fixture(name="extended", scope="module")
def an_extended_model():
    tokenizer = a_text_tokenizer()
    tokenizer.padding_side = "left"
    model = a_model(vocab_size=len(tokenizer) + 40)
    words = extend(tokenizer, model, vocabulary(has_rows=True))
    return tokenizer, model, words


HOW = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 5.0},
    "beams": {"do_sample": False, "num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("how", HOW)
def test_generate_lets_only_grammatical_spans_through(extended, how):
    tokenizer, model, words = extended
    begin = words.names[0]
    prompts = ["ten past ten" + begin, "ten" + begin, "past ten = 10:10"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    torch.manual_seed(0)
    rows = model.generate(
        **inputs,
        max_new_tokens=words.span_length + 4,
        logits_processor=[GrammarProcessor(words)],
        **HOW[how],
    )
    num = HOW[how].get("num_return_sequences", 1)
    pictures = 0
    for index, row in enumerate(rows.tolist()):
        parts = parse(strip_open(row, words), words, tokenizer)
        found = [part for part in parts if isinstance(part, Picture)]
        pictures += len(found)
        assert found or index // num == 2, "a prompt with begin gives a picture"
        assert max(row) < words.size
    assert pictures >= 2 * num


def strip_open(row, words):
    """Leave out a span that the limit of new ids cut."""
    starts = [i for i, value in enumerate(row) if value == words.begin]
    return row[: starts[-1]] if starts and len(row) - starts[-1] < words.span_length else row


# -- our own Llama -----------------------------------------------------------------------------

LLAMAS = {
    "plain": {},
    "tied blocks": {"is_tied": True, "repeat": 4},
    "rows": {"has_rows": True, "repeat": 2},
}


def own_model(tmp_path, name, **options):
    settings = {**LLAMAS[name], **options}
    is_tied = settings.pop("is_tied", False)
    tokens = text_tokens(WORDS)
    words = vocabulary(text_size=len(tokens), **settings)
    features = torch.zeros(len(tokens), 3)
    features[tokens.index(":10")] = torch.tensor([1.0, 0.5, -2.0])
    torch.manual_seed(0)
    model = Llama(
        words, features=features, num_layers=2, dim=16, num_heads=2, hidden_dim=24,
        is_tied=is_tied, rope_theta=50.0,  # not the stock default, which could hide a lost key
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    text = WordTokenizer.build(tokens, words)
    save_llm(model, text, tmp_path / "model")
    return model, text, words


@pytest.mark.parametrize("name", LLAMAS)
def test_the_export_is_a_stock_llama_with_the_same_logits(tmp_path, name):
    model, text, words = own_model(tmp_path, name)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    spoken = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(stock) is transformers.LlamaForCausalLM
    ids = torch.randint(0, words.size, (3, 30), generator=torch.manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(stock(ids).logits, model.logits(ids), atol=1e-5, rtol=0)
    again, _ = load_llm(tmp_path / "model")
    assert torch.equal(again.logits(ids), model.logits(ids))
    stock.save_pretrained(tmp_path / "saved")  # as a trainer would, who writes its own config
    spoken.save_pretrained(tmp_path / "saved")
    again, _ = load_llm(tmp_path / "saved")
    assert torch.equal(again.logits(ids), model.logits(ids))
    sentence = f"Ten past-ten,  ten = 10:10{words.names[0]}{words.names[-1]}"
    assert spoken(sentence)["input_ids"] == text.encode(sentence)
    assert spoken.decode(text.encode("ten past ten, 10:10")) == "ten past ten, 10:10"
    assert (spoken.bos_token_id, spoken.eos_token_id, spoken.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize("name", LLAMAS)
def test_cached_decoding_is_what_generate_does(tmp_path, name):
    model, text, words = own_model(tmp_path, name)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    prompts = [[1, *text.encode("ten past ten"), words.begin], [1, words.begin]]
    for prompt in prompts:
        row = stock.generate(
            torch.tensor([prompt]),
            max_new_tokens=words.span_length - 1,
            do_sample=False,
            logits_processor=[GrammarProcessor(words)],
        )
        mine = draw_codes(model, [prompt], temperature=0.0)
        assert words.to_tokens(row[0, len(prompt) - 1 :].numpy()).tolist() == mine[0].tolist()
    prompt = [1, *text.encode("ten past")]
    row = stock.generate(
        torch.tensor([prompt]), max_new_tokens=6, do_sample=False,
        logits_processor=[GrammarProcessor(words)], eos_token_id=[2, words.begin],
    )  # fmt: skip
    [found] = complete_text(model, [prompt], stop=[2, words.begin], max_new=6)
    assert row[0, len(prompt) :].tolist() == found


@pytest.mark.parametrize("name", LLAMAS)
def test_a_draw_hands_out_codes_and_text_as_they_come(tmp_path, name):
    model, text, words = own_model(tmp_path, name)
    ask = [1, *text.encode("ten past ten"), words.begin]
    prompts, seen, steps = [ask, [1, words.begin], ask], [], []
    hooks = {
        "on_tokens": lambda *step: seen.append(step),
        "on_step": lambda *step: steps.append(step),
    }
    found = torch.from_numpy(draw_codes(model, prompts, seed=3, **hooks))
    assert np.array_equal(found, draw_codes(model, prompts, seed=3))
    low, _ = token_ranges(words.codebook_sizes, words.num_tokens)
    for rows, tokens, is_decided in seen:
        assert rows.tolist() in ([0, 2], [1]) and not tokens.is_inference()
        assert torch.equal(tokens[is_decided], found[rows][is_decided])
        assert torch.equal(tokens[~is_decided], low.expand_as(tokens)[~is_decided])
    assert [int(step[2][0].sum()) for step in seen] == [*range(1, words.num_tokens + 1)] * 2
    assert steps[-1] == (3 * words.num_tokens,) * 2 and steps == sorted(steps)
    seen.clear(), steps.clear()
    told = complete_text(model, [[1], [1, 3], [1]], stop=[2], max_new=5, **hooks)
    last = {int(row): (ids[i], there[i]) for r, ids, there in seen for i, row in enumerate(r)}
    assert [ids[there].tolist() for ids, there in (last[n] for n in range(3))] == told
    assert steps[-1] == (15, 15) and all(there.shape[1] == 5 for _, _, there in seen)


def test_prompts_that_no_model_has_learned_are_refused(tmp_path):
    model, _, words = own_model(tmp_path, "plain")
    begin, size = words.begin, words.size
    image = words.span[0].tolist()
    broken = [
        ([1, size, begin], f"position 1: expected text or .*, came id {size}"),
        ([-1, begin], "position 0: expected text or .*, came id -1"),
        ([1, begin, begin], "expected .* at place 1 .*, came the end"),
        ([1, *image[:-1], 3, begin], "expected <|v_end|>"),
        ([1] * 4090 + [begin], "prompt of 4090 ids: must leave room for"),
    ]
    for prompt, wording in broken:
        with pytest.raises(UsageError, match=wording.replace("|", r"\|")):
            draw_codes(model, [[1, begin], prompt])
        with pytest.raises(UsageError, match=wording.replace("|", r"\|")):
            complete_text(model, [[1], prompt[:-1]], stop=[2], max_new=10)
    assert draw_codes(model, [[1, *image, begin]]).shape == (1, words.num_tokens)


def test_prompts_may_be_lists_arrays_or_tensors(as_users_call, tmp_path):
    model, _, words = own_model(tmp_path, "plain")
    rows = [[1, words.begin], [5, words.begin]]
    drawn = draw_codes(model, rows, null=[words.begin], guidance=2.0)
    told = complete_text(model, [[1], [5]], stop=[2], max_new=3)
    for kind in (np.array, torch.tensor):
        again = draw_codes(model, kind(rows), null=kind([words.begin]), guidance=2.0)
        assert np.array_equal(again, drawn)
        assert complete_text(model, kind([[1], [5]]), stop=[2], max_new=3) == told


def test_what_is_no_prompt_is_refused(as_users_call, tmp_path):
    model, _, words = own_model(tmp_path, "plain")
    for prompt in ([1.0, words.begin], words.begin, None, [[1, words.begin]], [True], "ab"):
        with pytest.raises(UsageError, match="^prompt: .*needs integers and one axis$"):
            draw_codes(model, [[1, words.begin], prompt])
        with pytest.raises(UsageError, match="^prompt: .*needs integers and one axis$"):
            complete_text(model, [[1], prompt], stop=[2], max_new=3)
    for num in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match=f"^max_new={num}: must be a whole number >= 1$"):
            complete_text(model, [[1]], stop=[2], max_new=num)


def test_a_damaged_folder_is_refused(tmp_path):
    own_model(tmp_path, "plain")
    folder = tmp_path / "model"
    config = (folder / "config.json").read_text()
    wrong = [
        ('"hidden_size": 16', '"hidden_size": 32', "config differs in"),
        ('"hidden_act": "silu"', '"hidden_act": "gelu"', "config differs in"),
        ('"text_size": 10', '"text_size": 11', "config differs in"),
        ('"num_hidden_layers": 2', '"num_hidden_layers": 3', "weights differ in"),
    ]
    for before, after, message in wrong:
        assert before in config
        (folder / "config.json").write_text(config.replace(before, after))
        with pytest.raises(FormatError, match=message):
            load_llm(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(FormatError, match="cannot be read"):
        load_llm(folder)
    shutil.rmtree(folder)
    with pytest.raises(FormatError, match="no such file"):
        load_llm(folder)
