import pytest

from simmim.data.names import plain


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (b"plain.jpg", "plain.jpg"),
        ("é 写真.jpg".encode(), "é 写真.jpg"),
        (b"chap\xe9u/f\xe9to.jpg", r"chap\xe9u/f\xe9to.jpg"),
        ("é".encode() + b"\xff\xc3.jpg", r"é\xff\xc3.jpg"),
    ],
)
@pytest.mark.parametrize("locale", ["utf-8", "ascii"])
def test_odd_bytes_are_escaped_whatever_the_locale(stored: bytes, shown: str, locale: str):
    name = stored.decode(locale, "surrogateescape")
    assert plain(name) == shown
    plain(name).encode()


def test_what_is_no_byte_is_escaped_too():
    assert plain("a\ud800b") == r"a\ud800b"
