"""What is kept stays within its bytes and its time, and what was used last stays longest."""

from serve.kept import Kept


def test_bytes_time_and_use() -> None:
    now = 0.0
    kept: Kept[str] = Kept(10, 5.0, lambda: now)
    assert kept.put("a", "A", 4) and kept.put("b", "B", 4)
    now = 3.0
    assert kept.get("a") == "A"
    assert kept.put("c", "C", 5)  # b was used longest ago
    assert (kept.get("a"), kept.get("b"), kept.get("c"), kept.bytes) == ("A", None, "C", 9)
    assert not kept.put("d", "D", 11)
    assert len(kept) == 2
    assert kept.put("a", "A2", 5)
    assert (kept.get("a"), kept.bytes) == ("A2", 10)
    now = 8.0
    assert kept.get("c") == "C"
    now = 8.1
    assert (kept.get("a"), kept.get("c"), kept.bytes) == (None, "C", 5)
    now = 13.2
    assert kept.get("c") is None
    assert kept.bytes == 0
    assert kept.put("a", "A", 4)
    assert not kept.put("a", "too large", 11)
    assert kept.get("a") is None
    assert kept.put("b", "B", 10)
    kept.clear()
    assert (kept.get("b"), kept.bytes) == (None, 0)
