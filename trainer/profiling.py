"""Profiling: `train.profile` updates -> a trace for chrome://tracing or Perfetto, and the ops that took most."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.timing import PhaseTimer

WARM_UP = 10  # updates: allocations, autotuning and compilation are not what a trace is wanted for
ROWS = 10


class UpdateProfiler:
    """Traces `updates` updates of this process behind the first ten, once; `step` after every update."""

    def __init__(self, updates: int, run_dir: Path, timer: PhaseTimer, device: torch.device) -> None:
        self._path, self._timer, self._updates = run_dir / "profile" / "trace.json", timer, updates
        self._on_cuda = device.type == "cuda"
        self._left = WARM_UP + updates if updates else 0
        self._profile: profile | None = None
        if updates:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_cuda else [])]
            phases = schedule(wait=WARM_UP - 1, warmup=1, active=updates, repeat=1)
            self._profile = profile(activities=activities, schedule=phases, on_trace_ready=self._write, acc_events=True)
            self._profile.start()

    def step(self) -> None:
        if self._profile is None:
            return
        self._left -= 1
        self._timer.annotate = self._left <= self._updates
        self._profile.step()
        if self._left == 0:
            self.close()

    def close(self) -> None:
        """A run that ends earlier has a shorter trace, or none."""
        if self._profile is None:
            return
        running, self._profile = self._profile, None
        self._timer.annotate = False
        running.stop()
        if self._left > self._updates:
            print(f"train.profile: the run ended within {WARM_UP} updates, before anything was traced", flush=True)

    def _write(self, traced: profile) -> None:
        self._path.parent.mkdir(exist_ok=True)
        traced.export_chrome_trace(str(self._path))
        print(f"trace of {self._updates - self._left} updates: {self._path}\n{self._table(traced)}", flush=True)

    def _table(self, traced: profile) -> str:
        """The ops with the most time of their own; phases and other ranges are no ops."""
        column = "self_device_time_total" if self._on_cuda else "self_cpu_time_total"
        ops: list[tuple[float, Any]] = [
            (getattr(op, column), op) for op in traced.key_averages() if not op.is_user_annotation
        ]
        whole, updates = sum(us for us, _ in ops) or 1.0, max(self._updates - self._left, 1)
        rows = [
            f"{us / whole:6.0%} {us / 1e3 / updates:8.3f} {op.count / updates:8.1f}  {op.key[:52]}"
            for us, op in sorted(ops, key=lambda one: -one[0])[:ROWS]
        ]
        return "\n".join([" share       ms    calls  of an update", *rows])
