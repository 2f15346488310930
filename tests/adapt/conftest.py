"""The small models that these tests share."""

from small_models import edge, foundation, one_thread, photos

__all__ = ["edge", "foundation", "one_thread", "photos"]
