"""What acts come to, whatever their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.store.control import SOURCE, Act, Control, Pause, Pin, Resume, Rollback, Stop, after

acts = st.lists(
    st.one_of(
        st.builds(Pin, to=st.integers(1, 3)),
        st.builds(Rollback, to=st.integers(1, 3)),
        *(st.builds(kind) for kind in (Pause, Resume, Stop)),
    ),
    max_size=12,
)


def content(act: Act) -> str | None:
    match act:
        case Pin(to=version) | Rollback(to=version):
            return f"digest {version}"
        case Stop():
            return SOURCE
        case _:
            return None


@given(acts)
def test_acts_come_to_what_the_last_one_that_counts_says(sequence: list[Act]) -> None:
    control = Control()
    for number, act in enumerate(sequence, 1):
        control = after(control, act, number=number, content=content(act))
    # Read from the end: the last act that is no pause says what holds; a pause only where it left publishing on.
    last = next((act for act in reversed(sequence) if not isinstance(act, Pause)), Resume())
    paused = bool(sequence) and isinstance(sequence[-1], Pause)
    match last:
        case Pin():
            expected = ("pinned", content(last))
        case Stop():
            expected = ("stopped", SOURCE)
        case _:
            expected = ("paused" if paused else "on", None)
    assert (control.publishing, control.content, control.serial) == (*expected, len(sequence))
