"""The one base class of the troubles that a user can meet."""


class CourseError(Exception):
    """Expected trouble: its text is one sentence saying what is wrong and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: the sentence, where it would print a traceback."""
        return [str(self)]
