"""The batches of a loop, with its speed and its waiting."""

from collections.abc import Callable, Iterator

from simmim.tensors.batch import Batch


class Batches:
    """Hands batches on and measures speed and waiting."""

    def __init__(
        self, batches: Iterator[Batch], batch_size: int, clock: Callable[[], float]
    ) -> None:
        self.batches = batches
        self.batch_size = batch_size
        self.clock = clock
        self.began = self.mark = clock()
        self.waited = 0.0
        self.done = 0
        self.ahead: Batch | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, self.ahead = self.peek(), None
        return batch

    def peek(self) -> Batch:
        """The next batch, which stays the next."""
        if self.ahead is None:
            before = self.clock()
            self.ahead = next(self.batches)
            self.waited += self.clock() - before
        return self.ahead

    def since(self) -> float:
        """Seconds since the last row."""
        return self.clock() - self.mark

    def measure(self, done: int) -> dict[str, float]:
        """Images/s and share of waiting since the last row; ``done`` steps of this attempt."""
        now = self.clock()
        seconds = max(now - self.mark, 1e-9)
        row = {
            "images_per_s": (done - self.done) * self.batch_size / seconds,
            "data_wait": self.waited / seconds,
            "time": now - self.began,
        }
        self.mark, self.waited, self.done = now, 0.0, done
        return row

    def restart(self) -> None:
        """Leave the time since the last row out: it went into a look, not into training."""
        self.mark = self.clock()
