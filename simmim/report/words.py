"""Numbers and names as people read them; nothing heavy is imported."""

import math

from simmim.data.names import plain


def duration(seconds: float) -> str:
    """``seconds`` in its two largest units: 45 s, 12 min, 2 h 14 min, 3 d 4 h."""
    if not math.isfinite(seconds):
        return "unknown time"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    if whole < 600 and whole % 60:
        return f"{whole // 60} min {whole % 60} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def percent(share: float, digits: int = 0) -> str:
    """A share of 1 as per cent, with a true minus sign: 48 %, −3 %, below −1,000 %."""
    if math.isnan(share):
        return "not a number"
    if abs(share) > 10:
        return "above 1,000 %" if share > 0 else "below −1,000 %"
    value = round(100 * share, digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{value:.{digits}f} %".replace("-", "−")


def points(share: float) -> str:
    """A difference of shares in percentage points, always with its sign: +12.3, −0.4."""
    return f"{100 * share:+.1f}".replace("-", "−") if math.isfinite(share) else "–"


def count(number: float, noun: str = "") -> str:
    """A count with thousands apart and its noun in the right number: 1,204 images, 1 image."""
    text = f"{number:,.0f}"
    return f"{text} {noun}{'' if text == '1' else 's'}" if noun else text


def number(value: float, digits: int = 4) -> str:
    """``value`` to so many digits, with a true minus sign: 0.4123, −12, 7.8e-5."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return mantissa.replace("-", "−") + (f"e{int(exponent)}" if exponent else "")


def speed(per_second: float) -> str:
    """A rate as a whole number from 100 up, below with three digits: 1,204, 61.3, 0.52."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def printable(text: str) -> str:
    """``text`` with control characters and undecodable bytes escaped, line breaks kept.

    File names may hold anything, and an escape sequence would move a terminal's cursor.
    """
    return "".join(
        sign
        if sign.isprintable() or sign == "\n"
        else sign.encode("ascii", "backslashreplace").decode()
        if ord(sign) > 126
        else f"\\x{ord(sign):02x}"
        for sign in plain(text)
    )
