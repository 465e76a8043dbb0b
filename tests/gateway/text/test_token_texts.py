"""Tokens by their bytes: joined they are the text, however the vocabulary spells; scores go with the text shown."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from gateway.demo import BASE_FOLDER
from gateway.text.detokenizer import Detokenizer, StopStrings
from gateway.text.scored_tokens import ScoredTokens
from gateway.text.token_texts import TokenTexts
from gateway.text.tokenizer import Tokenizer as Base
from runtime.protocol import TokenScore

DEMO = Base.from_folder(BASE_FOLDER)
TEXTS = TokenTexts(DEMO.encoder)
SOUND = st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace").decode())


@given(SOUND)
def test_the_bytes_of_tokens_joined_are_the_text(text: str) -> None:
    ids = DEMO.encode_text(text)
    assert b"".join(TEXTS.of(token)[1] for token in ids) == text.encode()
    for token in ids:
        shown, data = TEXTS.of(token)
        assert shown == data.decode("utf-8", "replace")


def test_special_tokens_and_padding() -> None:
    eos = DEMO.eos_token_id
    assert eos is not None
    assert TEXTS.of(eos) == (DEMO.encoder.id_to_token(eos), (DEMO.encoder.id_to_token(eos) or "").encode())
    assert TEXTS.of(10**9) == ("", b"")


def test_sentencepiece_spelling() -> None:
    words = {"\u2581hall": 0, "<0xF0>": 1, "<0x9F>": 2, "s": 3, "<unk>": 4, "<0xZZ>": 5}
    encoder = Tokenizer(models.BPE(words, [], byte_fallback=True, unk_token="<unk>"))
    encoder.add_special_tokens([AddedToken("<unk>", special=True)])
    encoder.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = TokenTexts(encoder)
    assert [texts.of(token)[1] for token in range(6)] == [b" hall", b"\xf0", b"\x9f", b"s", b"<unk>", b"<0xZZ>"]
    assert texts.of(1)[0] == "\ufffd"


def test_a_vocabulary_without_a_decoder_is_taken_as_it_is() -> None:
    texts = TokenTexts(Tokenizer(models.WordLevel({"\u2581a": 0, "<0xF0>": 1}, unk_token="a")))
    assert [texts.of(token)[1] for token in range(2)] == ["\u2581a".encode(), b"<0xF0>"]


@given(SOUND, st.lists(st.text(min_size=1, max_size=3), max_size=2), st.randoms(use_true_random=False))
def test_scores_come_with_their_text_and_end_before_a_stop(text: str, stops: list[str], cuts: object) -> None:
    ids = DEMO.encode_text(text)
    scored, detokenizer, stopper = ScoredTokens(TEXTS), Detokenizer(DEMO.encoder), StopStrings(stops)
    shown, data, place = "", b"", 0
    while place < len(ids) and not stopper.matched:
        step = ids[place : place + cuts.randint(1, 3)]  # type: ignore[attr-defined]
        place += len(step)
        scored.push(step, [TokenScore(-1.0)] * len(step))
        piece = stopper.push(detokenizer.push(step))
        shown += piece
        data += b"".join(token.data for token in scored.shown(piece))
        assert len(data) >= len(shown.encode())
    if stopper.matched:
        assert data.startswith(shown.encode())
        assert len(data) - len(shown.encode()) < max(len(TEXTS.of(token)[1]) for token in ids)
    else:
        assert (data + b"".join(token.data for token in scored.rest())) == text.encode()
    assert scored.rest() == () or stopper.matched
