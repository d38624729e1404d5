"""What every damaged file must give: one line, or numbers of the right shape."""

from hypothesis import given, settings
from hypothesis import strategies as st

from isouq.text.loading.checkpoint import open_checkpoint


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    assert 20 < len(message) < 700
    return message


def opens_or_says_why(file, target, raw, head):
    """Flips one byte of the first `head`, or cuts the file there: a ValueError of one line, or it still reads."""

    @settings(max_examples=30, deadline=None)
    @given(at=st.integers(0, head - 1), mask=st.integers(1, 255), cut=st.booleans())
    def check(at, mask, cut):
        file.unlink(missing_ok=True)  # a new file, since the old one may still be mapped
        file.write_bytes(raw[:at] if cut else raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :])
        said = ""
        try:
            checkpoint = open_checkpoint(target)
            checkpoint.tokenizer_parts()
            for name, shape in checkpoint.shapes.items():
                assert checkpoint.read(name).shape == shape
        except ValueError as error:
            said = str(error)
        assert "\n" not in said
        assert said or not cut

    check()
