"""Counters and histograms in Prometheus' text format."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts of values up to each bound, and their sum."""

    def __init__(self, bounds: Sequence[int | float]):
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: int | float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yield the lines of this histogram; `labels` are written already."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum:.6f}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """What a server counts; used by the event loop alone."""

    def __init__(self):
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._batches: dict[str, Histogram] = defaultdict(lambda: Histogram(SIZES))

    def observe_request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is the pattern of its route."""
        self._requests[method, path, status] += 1
        self._seconds[path].observe(seconds)

    def observe_batch(self, task: str, size: int) -> None:
        """Count a batch of examples that were answered at once."""
        self._batches[task].observe(size)

    def render(self) -> str:
        """Return all counts as text."""
        lines = ["# TYPE metaguide_requests_total counter"]
        errors: Counter[str] = Counter()
        for (method, path, status), count in sorted(self._requests.items()):
            labels = f'method="{method}",path="{path}",status="{status}"'
            lines.append(f"metaguide_requests_total{{{labels}}} {count}")
            errors[path] += count * (status >= 400)
        lines.append("# TYPE metaguide_errors_total counter")
        lines += [
            f'metaguide_errors_total{{path="{path}"}} {count}' for path, count in errors.items()
        ]
        for name, label, found in (
            ("metaguide_request_seconds", "path", self._seconds),
            ("metaguide_batch_examples", "task", self._batches),
        ):
            lines.append(f"# TYPE {name} histogram")
            for value, histogram in sorted(found.items()):
                lines += histogram.lines(name, f'{label}="{value}"')
        return "\n".join(lines) + "\n"
