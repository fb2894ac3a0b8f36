"""`trainer/offline_trainer.py` as it is, with a mark after each update, and the bound beside it.

    our_program.py RESULT.json CONFIG.yaml

The bound is the bare forward, backward and fused AdamW of a second copy of the model, on one prepared batch. Its blocks
take turns with the trainer's, in the same process, so that what else the machine does falls on both. With data workers
it comes after the run instead: workers would read ahead meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from marks import BLOCK, Marks, clocks

marks, bound = Marks(), []


def main() -> None:
    result, config = sys.argv[1:]
    from trainer import watch
    from trainer.config import load_run_config
    from trainer.metrics import read_metrics
    from trainer.offline_trainer import main as offline_trainer

    experiment = load_run_config(config).experiment
    after_update = watch.Watch.after_update
    update: list[Callable[[], None]] = []

    def marked(self: watch.Watch, *given: object, **named: object) -> None:
        after_update(self, *given, **named)
        marks.update_ends()
        done = len(marks.ends)  # in the middle of a block: memory was read before, and the log's line counts
        if not experiment.data.num_workers and done > BLOCK and done % BLOCK == BLOCK // 2:
            bound.append(bound_seconds(config, update, BLOCK))
            marks.leave_out_next()

    watch.Watch.after_update = marked
    status = offline_trainer(["--train_config", config])
    if status:
        sys.exit(status)
    if not bound:
        bound.append(bound_seconds(config, update, len(marks.ends)))
    steps = experiment.train.max_steps
    lines = [line for line in read_metrics(Path(experiment.train.save_dir) / "metrics.jsonl") if "loss" in line]
    late = [line["loss"] for line in lines if line["step"] > 0.8 * steps]
    phases = {name: value for name, value in lines[-1].items() if name.startswith("time/")}
    marks.write(result, bound=bound, loss=sum(late) / len(late), phases=phases)


def bound_seconds(config: str, update: list[Callable[[], None]], updates: int) -> list[float]:
    """Mean seconds of a bare update, by each clock. The run's random streams stay as they are."""
    import torch

    with torch.random.fork_rng():
        return timed(config, update, updates)


def timed(config: str, update: list[Callable[[], None]], updates: int) -> list[float]:
    import torch

    if not update:
        update.append(bare_update(config))
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    update[0]()  # what the program left in the caches is not the bound's
    wait()
    began = clocks()
    for _ in range(updates):
        update[0]()
    wait()
    return ((clocks() - began) / updates).tolist()


def bare_update(config: str) -> Callable[[], None]:
    import torch

    from trainer.build import build_run
    from trainer.config import load_run_config
    from trainer.distributed import World
    from trainer.loop import training_batches

    run = build_run(load_run_config(config), World())
    with training_batches(run, 0) as batches:
        batch = run.data.prepare(next(iter(batches)), None)
    run.models.train()
    optimizer = torch.optim.AdamW(run.models.parameters(), fused=True)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            loss = run.trainer.compute_loss(batch).loss
        loss.backward()
        optimizer.step()

    return update


if __name__ == "__main__":
    main()
