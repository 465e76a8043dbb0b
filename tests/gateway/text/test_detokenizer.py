"""Text comes in whole characters, adds up to the whole, and ends before a stop string wherever the pieces are cut."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from gateway.demo import BASE_FOLDER
from gateway.text.detokenizer import Detokenizer, StopStrings
from gateway.text.token_texts import SpelledTokens
from gateway.text.tokenizer import Tokenizer
from tests.gateway.text.folders import metaspace

DEMO = Tokenizer.from_folder(BASE_FOLDER)
TEXT = "Die Möwe 🦜🏴‍☠️ 你好 at noon, 12\u00a0boats\n👩‍👩‍👧 ok"


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer.encoder, spelled=tokenizer.spelled)
    return [detokenizer.push([token]) for token in ids]


def test_split_characters_come_out_whole() -> None:
    ids = DEMO.encode_text(TEXT)
    shown = pieces(DEMO, ids)
    assert len(ids) > len(TEXT)  # some characters are several tokens, so there was something to hold back
    assert "".join(shown) == TEXT
    assert not any("\ufffd" in piece for piece in shown)


def test_split_characters_with_byte_fallback(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(metaspace(tmp_path / "base"))
    shown = pieces(tokenizer, tokenizer.encode_text(TEXT))
    assert "".join(shown) == TEXT
    assert not any("\ufffd" in piece for piece in shown)


def test_half_a_character_at_the_end_is_dropped() -> None:
    ids = DEMO.encode_text("ok 🦜")
    assert "".join(pieces(DEMO, ids[:-1])) == "ok "


def test_special_tokens_leave_no_trace() -> None:
    eos = DEMO.eos_token_id
    assert eos is not None
    assert "".join(pieces(DEMO, [*DEMO.encode_text("a"), eos, *DEMO.encode_text("b")])) == "ab"


@given(st.lists(st.integers(0, DEMO.encoder.get_vocab_size() - 1), max_size=60))
def test_any_tokens_add_up_to_what_the_tokenizer_says(ids: list[int]) -> None:
    whole = DEMO.encoder.decode(ids, skip_special_tokens=True)
    shown = "".join(pieces(DEMO, ids))
    assert whole.startswith(shown)
    assert set(whole[len(shown) :]) <= {"\ufffd"}  # only bytes that never became a character are missing


@given(st.text(max_size=20), st.lists(st.integers(1, 5), max_size=30))
def test_bytes_joined_say_what_the_library_says_however_many_tokens_come_at_once(text: str, sizes: list[int]) -> None:
    assert DEMO.spelled is not None
    ids = DEMO.encode_text(text.encode("utf-8", "replace").decode() + " 🦜")
    joined, library = Detokenizer(DEMO.encoder, spelled=DEMO.spelled), Detokenizer(DEMO.encoder)
    at, shown = 0, ""
    for size in [*sizes, len(ids)]:
        shown += joined.push(ids[at : at + size])
        at += size
    assert shown == library.push(ids)


def test_only_what_a_byte_level_decoder_says_is_joined(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(metaspace(tmp_path / "base")).spelled is None
    encoder = Encoder.from_str(DEMO.encoder.to_str())
    encoder.add_tokens([AddedToken("é", special=False), AddedToken("<call> é", special=False)])
    spelled = SpelledTokens.of(encoder)
    assert spelled is not None
    ids = [token for word in ("é", "<call> é") if (token := encoder.token_to_id(word)) is not None]
    assert len(ids) == 2
    for each in ([ids[0], *DEMO.encode_text("a")], [ids[1]], [encoder.get_vocab_size() + 7, ids[1]]):
        assert Detokenizer(encoder, spelled=spelled).push(each) == encoder.decode(each)


def test_kept_tokens_stand_where_they_came() -> None:
    eos = DEMO.eos_token_id
    assert eos is not None
    bird = DEMO.encode_text("🦜")
    detokenizer = Detokenizer(DEMO.encoder, {eos: "<end>"}, DEMO.spelled)
    assert detokenizer.push([*DEMO.encode_text("a"), eos, *bird[:-1]]) == "a<end>"
    assert detokenizer.push(bird[-1:]) == "🦜"


@given(st.lists(st.integers(0, 600), max_size=40))
def test_any_tokens_never_raise_with_byte_fallback(ids: list[int]) -> None:
    tokenizer = _METASPACE[0]
    known = [token for token in ids if tokenizer.encoder.id_to_token(token) is not None]
    pieces(tokenizer, known)


_METASPACE: list[Tokenizer] = []


@pytest.fixture(autouse=True, scope="module")
def _metaspace(tmp_path_factory: pytest.TempPathFactory) -> None:
    _METASPACE.append(Tokenizer.from_folder(metaspace(tmp_path_factory.mktemp("base"))))


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    matcher = StopStrings(stops)
    shown = []
    start = 0
    for end in ends:
        shown.append(matcher.push(text[start:end]))
        start = end
    shown.append(matcher.flush())
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    # A stop string that completes earlier wins over one that begins earlier but completes later, as in a stream.
    found = "".join(shown)
    assert matcher.matched == (first is not None)
    if first is None:
        assert found == text
    else:
        assert matcher.met in stops
        assert text.startswith(found + matcher.met)
        assert len(found) >= first
        assert not any(stop in found for stop in stops)


def test_nothing_of_a_stop_string_is_shown() -> None:
    matcher = StopStrings(["STOP"])
    assert [matcher.push(piece) for piece in ("a S", "T", "OX ST", "O", "P tail", "more")] == [
        "a ", "", "STOX ", "", "", "",
    ]  # fmt: skip
    assert matcher.flush() == ""
