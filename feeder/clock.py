"""The only module that reads a clock. Everything else is told the time, in integer nanoseconds."""

from time import monotonic_ns, perf_counter_ns, process_time_ns, sleep, thread_time_ns, time_ns

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
MICROSECOND = 1_000

wall_ns = time_ns            # since the epoch; may jump
steady_ns = monotonic_ns     # deadlines and rates; never jumps
stopwatch_ns = perf_counter_ns   # latencies and benches; finest
cpu_ns = thread_time_ns          # CPU this thread used; benches on a shared machine
process_cpu_ns = process_time_ns     # CPU of all threads

__all__ = ["SECOND", "MILLISECOND", "MICROSECOND", "wall_ns", "steady_ns", "stopwatch_ns", "cpu_ns", "process_cpu_ns", "sleep"]
