"""Image ids beside text ids: the layout, the grammar, rows, packed files."""

import json

import numpy as np
import pytest
import torch

from qvae.errors import FormatError, UsageError
from qvae.llm import Grammar, PackedRows, Picture, Text, Vocabulary, from_row, parse, to_row
from qvae.llm.packed import write_packed
from qvae.llm.processor import GrammarProcessor

LAYOUTS = {
    "plain": {},
    "rows": {"has_rows": True},
    "blocks": {"repeat": 6},
    "columns": {"repeat": 3, "has_rows": True},
    "text after": {"is_text_first": False, "has_rows": True},
}


def words(**options):
    settings = {"codebook_sizes": (8, 5), "grid": (2, 3), "tokenizer_hash": "ab", "text_size": 40}
    return Vocabulary(**{**settings, **options})


def images(vocabulary, num, seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.array(vocabulary.codebook_sizes)
    books = np.arange(vocabulary.num_tokens) % len(sizes)
    digits = (rng.random((num, len(books))) * sizes[books]).astype(np.int64)
    return digits + (np.cumsum(sizes) - sizes)[books]


class Letters:
    """A text tokenizer of one id a letter; letters begin at an offset."""

    bos_token_id, eos_token_id = 0, 1

    def __init__(self, offset=0):
        self.offset = offset
        if offset:
            self.bos_token_id, self.eos_token_id = offset, offset + 1

    def encode(self, text, *, add_special_tokens=True):
        return [self.offset + ord(letter) - ord("a") + 2 for letter in text]

    def decode(self, ids, *, skip_special_tokens=False):
        letters = [i - self.offset for i in ids]
        return "".join(chr(i - 2 + ord("a")) for i in letters if i >= 2)


@pytest.fixture(params=LAYOUTS, name="layout")
def a_layout(request):
    return words(**LAYOUTS[request.param])


def test_ids_have_no_holes_and_tokens_come_back(layout):
    tokens = images(layout, 50)
    ids = layout.to_ids(tokens)
    assert np.array_equal(layout.to_tokens(ids), tokens)
    assert ids.shape == (50, layout.span_length)
    image = set(range(layout.first, layout.first + layout.num_image_ids))
    text = set(range(layout.text_first, layout.text_first + layout.text_size))
    assert image | text == set(range(layout.size)) and not image & text
    assert set(ids.ravel().tolist()) <= image
    assert (ids[:, 0] == layout.begin).all() and (ids[:, -1] == layout.end).all()
    if layout.row is not None:
        assert ((ids == layout.row).sum(1) == layout.grid[0] - 1).all()
    assert len(layout.names) == len(set(layout.names)) == layout.num_image_ids


def test_a_code_of_each_cell_has_ids_of_its_own_when_blocks_are_cells():
    layout = words(repeat=6)
    low, high = layout.span
    ranges = [set(range(low[p], high[p])) for p in layout.code_places]
    assert len(set.union(*ranges)) == sum(map(len, ranges)) == 6 * 13


def test_json_round_trip_and_what_is_refused(layout):
    facts = json.loads(json.dumps(layout.to_json()))
    assert Vocabulary.from_json(facts) == layout
    wrong = [
        ({"format_version": 9}, "format_version=9, must be 1"),
        ({"grid": [0]}, "grid=.0,.: every size"),
        ({"grid": "8x8"}, "grid='8x8' is of another type"),
        ({"text_size": True}, "text_size=True is of another type"),
        ({"extra": 1}, "keys differ in .'extra'"),
        ({"repeat": 99}, "repeat=99: must be in 1..6"),
    ]
    for change, message in wrong:
        with pytest.raises(FormatError, match=message):
            Vocabulary.from_json({**facts, **change})
    for facts in (None, [], {}):
        with pytest.raises(FormatError, match="format_version"):
            Vocabulary.from_json(facts)


def test_the_dtype_follows_from_the_size():
    assert words(codebook_sizes=(65_000,)).dtype == np.uint16
    assert words(codebook_sizes=(65_000,), repeat=2).dtype == np.uint32


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
def test_the_largest_id_is_read_back_at_the_limit_of_the_dtype(size, tmp_path):
    layout = words(codebook_sizes=(size - 42,))
    assert layout.size == size and layout.dtype == (np.uint16 if size <= 2**16 else np.uint32)
    row = to_row([Picture(np.full(6, size - 43))], layout, Letters())
    assert max(row["input_ids"]) == size - 1
    write_packed(tmp_path / "rows", {"train": [row]}, layout)
    assert PackedRows(tmp_path / "rows", "train")[0] == row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_sizes": (8, 2.7)}, r"codebook_sizes=\(8, 2.7\): every size must be a whole"),
        ({"codebook_sizes": "88"}, "codebook_sizes='88': must be a sequence of sizes"),
        ({"codebook_sizes": 8}, "codebook_sizes=8: must be a sequence of sizes"),
        ({"grid": (True, 2)}, r"grid=\(True, 2\): every size must be a whole number >= 1"),
        ({"grid": None}, "grid=None: must be a sequence"),
        ({"text_size": 1.5}, "text_size=1.5: must be a whole number >= 0"),
        ({"repeat": "2"}, "repeat='2': must be a whole number >= 1"),
        ({"has_rows": 2}, "has_rows=2: must be a bool"),
        ({"is_text_first": "no"}, "is_text_first='no': must be a bool"),
        ({"tokenizer_hash": None}, "tokenizer_hash=None: must be a str"),
    ],
    ids=str,
)
def test_a_size_of_another_type_is_refused_not_cut(as_users_call, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        words(**options)


def test_tokens_out_of_range_are_named():
    tokens = images(words(), 2)
    tokens[1, 3] = 2  # a code of the first codebook where one of the second belongs
    with pytest.raises(ValueError, match=r"token 2 at position 3: must be in 8..12"):
        words().to_ids(tokens)
    with pytest.raises(ValueError, match=r"shape \(2, 5\), needs integers \[..., 12\]"):
        words().to_ids(tokens[:, :5])


def test_another_image_tokenizer_is_refused():
    class Other:
        hash = "cd"

    with pytest.raises(FormatError, match="image tokenizer cd: the language model was made for ab"):
        words().check_tokenizer(Other())


# -- grammar -----------------------------------------------------------------------------------


def test_a_random_walk_through_what_is_allowed_is_grammatical(layout):
    """Drawing uniformly from what passes gives rows that parse, for rows out of step."""
    generator = torch.Generator().manual_seed(0)
    process = GrammarProcessor(layout)
    ids = torch.full((16, 1), layout.text_first)
    for _ in range(60):
        scores = process(ids, torch.zeros(16, layout.size + 7))
        assert (scores[:, layout.size :] == -torch.inf).all(), "rows of padding are no ids"
        is_begin = torch.rand(16, generator=generator) < 0.2  # else images are rare
        scores[is_begin, layout.begin] += 100
        ids = torch.cat([ids, torch.multinomial(scores.softmax(-1), 1, generator=generator)], 1)
    spans = [list(closed_spans(layout, row)) for row in ids.numpy()]
    assert sum(map(len, spans)) > 20
    for row, found in zip(ids.numpy(), spans, strict=True):
        for start, stop in found:
            again = layout.to_ids(layout.to_tokens(row[start:stop]))
            assert np.array_equal(again, row[start:stop])


def closed_spans(layout, row):
    last = np.flatnonzero(row == layout.begin)
    if len(last) and len(row) - last[-1] < layout.span_length:
        row = row[: last[-1]]
    return Grammar(layout).spans(row)


def test_every_broken_span_is_refused_with_what_was_expected_and_what_came(layout):
    grammar, start = Grammar(layout), [layout.text_first] * 2
    span = layout.to_ids(images(layout, 1))[0].tolist()
    assert list(grammar.spans(np.array([*start, *span, *start]))) == [(2, 2 + len(span))]
    for place in range(1, len(span)):
        broken = [*start, *span]
        broken[2 + place] = layout.begin
        with pytest.raises(FormatError, match=f"position {2 + place}: expected .* came id"):
            list(grammar.spans(np.array(broken)))
        with pytest.raises(FormatError, match="came the end"):
            list(grammar.spans(np.array([*start, *span[:place]])))
        assert not list(grammar.spans(np.array([*start, *span[:place]]), may_go_on=True))
    with pytest.raises(FormatError, match="expected text or <.v_begin.>, came id"):
        list(grammar.spans(np.array([layout.end])))
    with pytest.raises(FormatError, match="no id of this vocabulary"):
        list(grammar.spans(np.array([layout.size])))


def test_a_prompt_that_breaks_the_grammar_is_refused():
    layout = words(has_rows=True)
    good = layout.to_ids(images(layout, 1))[0]
    prompt = torch.tensor([[5, *good[:4]], [5, 5, layout.begin, layout.row, int(good[1])]])
    with pytest.raises(FormatError, match=r"position 3: expected <.v:00000.> .* .<.v_row.>"):
        GrammarProcessor(layout)(prompt, torch.zeros(2, layout.size))


def test_a_second_prompt_is_checked_whatever_was_seen_before():
    """One processor serves many calls, and lengths say nothing about where rows come from."""
    layout = words()
    process, code = GrammarProcessor(layout), layout.code_first
    scores = torch.zeros(1, layout.size)
    first = torch.tensor([[0, 0, 0]])
    process(first, scores)
    process(torch.cat([first, first[:, :1]], 1), scores)
    for prompt in ([1, code, code, 3, 3], [code], [1] * 4 + [code], [1, 1, 1, code, 1]):
        with pytest.raises(FormatError, match="expected text or"):
            process(torch.tensor([prompt]), scores)
    good = torch.tensor([[0, layout.begin], [1, 1]])
    process(good, torch.zeros(2, layout.size))
    with pytest.raises(FormatError, match="position 0"):  # one row goes on, the other is new
        process(torch.tensor([[0, layout.begin, code], [code, 1, 1]]), torch.zeros(2, layout.size))
    swapped = torch.cat([good.flip(0), torch.tensor([[1], [code]])], 1)
    process(good, torch.zeros(2, layout.size))
    found = process(swapped, torch.zeros(2, layout.size))  # beams may change places
    assert found[0, layout.begin] == 0 and found[1, layout.begin] == -torch.inf


NO_ROWS = [
    ([[0, 1]], r"int64 of shape \(1, 2\)"),
    (torch.tensor([[0, 1]]), r"int64 of shape \(1, 2\)"),
    ([[0, 1], [2]], "no row of numbers"),
    ([0, 1.5], r"float64 of shape \(2,\)"),
    ([True], "bool of shape"),
    ("ab", "<U2 of shape"),
    (None, "object of shape"),
    (3, r"int64 of shape \(\)"),
]


@pytest.mark.parametrize(("ids", "what"), NO_ROWS, ids=lambda value: str(value)[:16])
def test_what_is_no_flat_row_of_ids_is_refused(as_users_call, ids, what):
    """Rows of rows above all: what generate() returns has one axis more than a row."""
    rule = f"{what}.*, needs integers and one axis$"
    with pytest.raises(FormatError, match=f"^ids: {rule}"):
        parse(ids, words(), Letters())
    with pytest.raises(FormatError, match=f"^ids: {rule}"):
        list(Grammar(words()).spans(ids))
    with pytest.raises(FormatError, match=f"^input_ids: {rule}"):
        from_row({"input_ids": ids}, words(), Letters())


def test_a_row_may_be_a_list_an_array_or_a_tensor(as_users_call):
    row = to_row([Text("hi"), Picture(images(words(), 1)[0])], words(), Letters())["input_ids"]
    for ids in (row, np.array(row, np.uint16), torch.tensor(row)):
        text, picture = parse(ids, words(), Letters())
        assert text == Text("hi") and picture.tokens.tolist() == images(words(), 1)[0].tolist()


def test_a_model_that_was_not_extended_is_refused():
    """It has no scores for images, so an image would be drawn from nothing."""
    layout = words()
    process, prompt = GrammarProcessor(layout), torch.tensor([[5, layout.begin]])
    with pytest.raises(FormatError, match="^scores of 40 ids: the vocabulary has 55; the model"):
        process(prompt, torch.zeros(1, 40))
    assert process(prompt[:, :0], torch.zeros(1, layout.size)).shape == (1, layout.size)


# -- rows --------------------------------------------------------------------------------------


def test_rows_go_both_ways(layout):
    letters = Letters(layout.text_first)
    tokens = images(layout, 2)
    cases = [
        [Text("draw", True), Picture(tokens[0])],
        [Picture(tokens[0], True), Text("answer")],
        [Text("a"), Picture(tokens[0], True), Text("b", True), Text("c"), Picture(tokens[1])],
        [Text("only")],
        [Picture(tokens[1]), Picture(tokens[0], True)],
    ]
    for parts in cases:
        row = to_row(parts, layout, letters)
        lengths = {len(row[name]) for name in ("input_ids", "labels", "attention_mask")}
        assert len(lengths) == 1
        found = from_row(row, layout, letters)
        assert [describe(part) for part in found] == [describe(part) for part in parts]
        plain = parse(row["input_ids"], layout, letters)
        assert sum(isinstance(part, Picture) for part in plain) == sum(
            isinstance(part, Picture) for part in parts
        )


def describe(part):
    value = part.text if isinstance(part, Text) else part.tokens.tolist()
    return type(part).__name__, value, part.is_prompt


def test_text_cannot_smuggle_in_an_image():
    layout = words(text_size=20)  # the letters after r would be image ids
    with pytest.raises(ValueError, match="text 'xyz': holds"):
        to_row([Text("xyz")], layout, Letters())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: "hi", r"parts\[1\]='hi': must be a Text of a string, or a Picture"),
        (lambda: Text(3), r"parts\[1\]=Text\(text=3, .*: must be a Text of a string"),
        (lambda: Picture([[0] * 12]), r"parts\[1\].tokens: int64 of shape \(1, 12\), needs"),
        (lambda: Picture(None), r"parts\[1\].tokens: object of shape"),
    ],
    ids=["string", "number", "images", "nothing"],
)
def test_what_is_no_part_of_a_row_is_refused(as_users_call, make, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        to_row([Text("a"), make()], words(), Letters())


def test_labels_that_are_not_the_ids_are_refused():
    row = to_row([Text("abc")], words(), Letters())
    row["labels"][2] = 7
    with pytest.raises(FormatError, match="labels: 7 at position 2, needs the id there"):
        from_row(row, words(), Letters())


def test_packed_rows_are_the_rows_and_the_flat_file_is_the_ids(layout, tmp_path):
    letters = Letters(layout.text_first)
    rows = [
        to_row([Text("draw" * n, True), Picture(image)], layout, letters)
        for n, image in enumerate(images(layout, 5), 1)
    ]
    write_packed(tmp_path / "rows", {"train": iter(rows), "val": []}, layout)
    packed = PackedRows(tmp_path / "rows", "train")
    assert list(packed) == rows and packed[-1] == rows[-1] and packed[1:3] == rows[1:3]
    assert packed.vocabulary == layout
    flat = np.fromfile(tmp_path / "rows" / "train.bin", dtype=layout.dtype)
    assert flat.tolist() == sum((row["input_ids"] for row in rows), [])
    assert len(PackedRows(tmp_path / "rows", "val")) == 0
    meta = json.loads((tmp_path / "rows" / "meta.json").read_text())
    assert meta["vocab_size"] == layout.size


def test_packed_rows_refuse_what_is_wrong(tmp_path):
    row = {"input_ids": [1, 999], "labels": [1, 999]}
    with pytest.raises(FormatError, match="row 0 has id 999 at position 1"):
        write_packed(tmp_path / "rows", {"train": [row]}, words())
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    good = {"input_ids": [1, 2], "labels": [-100, 2]}
    write_packed(tmp_path / "rows", {"train": [good]}, words())
    with pytest.raises(UsageError, match="exists"):
        write_packed(tmp_path / "rows", {"train": [good]}, words())
    with pytest.raises(FormatError, match="no split 'valid', only train"):
        PackedRows(tmp_path / "rows", "valid")
    (tmp_path / "rows" / "train.mask.bin").write_bytes(b"\1\1")
    with pytest.raises(FormatError, match="was changed since"):
        PackedRows(tmp_path / "rows", "train")


def test_rows_are_a_parquet_file_that_trainers_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    layout = words()
    rows = [
        to_row([Text("hi", True), Picture(image)], layout, Letters()) for image in images(layout, 3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    again = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert again == rows
    assert describe(from_row(again[1], layout, Letters())[1]) == describe(
        Picture(images(layout, 3)[1])
    )
