"""Watch: what happens in a run -> metrics.jsonl, a progress bar, loggers, a picture. Only the first process writes."""

from collections.abc import Mapping
from contextlib import ExitStack, closing

from torch import Tensor
from torch.optim import Optimizer

from trainer.build import Run
from trainer.loggers import Logger, build_loggers
from trainer.metrics import MetricsFile, ProgressBar, draw_curves
from trainer.profiling import UpdateProfiler
from trainer.state import Progress
from trainer.templates import ComponentTrainer

DRAW_EVERY_S = 600.0  # the picture of a run that goes on


class Watch:
    """Adding an update waits for nothing; `log` reads the means since the last one from the device, once."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run = run
        self.last: dict[str, float] = {}  # the means that were logged last
        self._rates: dict[str, float] = {}
        self._has_looked = False
        self._lines: MetricsFile | None = None
        self._bar: ProgressBar | None = None
        self._loggers: list[Logger] = []
        self._profiler: UpdateProfiler | None = None
        with ExitStack() as opening:
            if run.world.is_first:
                self._open(opening, progress)
            self._opened = opening.pop_all()
        run.timer.restart()

    def before_update(self, optimizers: Mapping[str, Optimizer]) -> None:
        """The rates that this update uses: an optimizer's `step` sets those of the next one."""
        self._rates = {f"lr/{name}": float(one.param_groups[0]["lr"]) for name, one in optimizers.items()}

    def after_update(self, progress: Progress, metrics: Mapping[str, Tensor | float], samples: int) -> None:
        with self._run.timer("logging"):
            progress.window.add(metrics, getattr(self._run.trainer, "step_weight", 1.0))
            self._run.timer.count(samples)
            if self._bar is not None:
                self._bar.advance()
            if not self._has_looked:
                self._tell_unreached()
        if self._profiler is not None:
            self._profiler.step()

    def _tell_unreached(self) -> None:
        """A component that the loss does not use trains without a word, and stays as it was."""
        self._has_looked = True
        if self._bar is None or not isinstance(self._run.trainer, ComponentTrainer):
            return
        for name, optimizer in self._run.optimizers.items():
            if all(one.grad is None for group in optimizer.param_groups for one in group["params"]):
                self._bar.tell(f"warning: the first update's loss has not reached component '{name}': no gradient")

    def log(self, progress: Progress) -> None:
        """On every process: the means are over all of them."""
        with self._run.timer("logging"):
            self.last = {**progress.window.read(self._run.world), **self._run.timer.lap(self._run.world)}
            self._write(progress, {**self.last, **self._rates})
            if self._bar is not None:
                self._bar.show({**self.last, **self._rates})

    def note(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Numbers that belong to this moment, not to the updates since the last line."""
        self.last |= metrics
        self._write(progress, metrics)
        if self._bar is not None:
            self._bar.tell(
                f"step {progress.step}  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            )

    def before_save(self) -> None:
        """The lines up to a checkpoint outlive whatever it outlives."""
        if self._lines is not None:
            self._lines.flush_to_disk()

    def after_save(self, is_last: bool) -> None:
        """A long run is looked at before its end; a picture that cannot be drawn costs a line, not the run."""
        if self._lines is None:
            return
        every_s = 0.0 if is_last else DRAW_EVERY_S
        try:
            draw_curves(self._run.config.save_dir, self._run.config.name, at_most_every_s=every_s)
        except Exception as error:  # whatever matplotlib raises
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self._run.world.say(f"warning: loss.png was not drawn ({why})")

    def close(self) -> None:
        self._opened.close()
        self._run.world.say(self._run.timer.summary())

    def _open(self, opening: ExitStack, progress: Progress) -> None:
        config = self._run.config
        run_dir, name = config.save_dir, config.name
        self._lines = opening.enter_context(
            closing(MetricsFile(run_dir / "metrics.jsonl", progress.step, progress.owed))
        )
        self._bar = opening.enter_context(closing(ProgressBar(name, progress.step, self._run.planned_updates)))
        profiler = UpdateProfiler(config.experiment.train.profile, run_dir, self._run.timer, self._run.device)
        self._profiler = opening.enter_context(closing(profiler))
        project = self._run.data.task or name
        for logger in build_loggers(
            config.experiment.train.loggers, run_dir, progress.step, project=project, name=name, config=config.data
        ):
            self._loggers.append(opening.enter_context(closing(logger)))

    def _write(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if self._lines is None:
            return
        if taken := {"step", "epoch"} & metrics.keys():
            raise ValueError(f"the trainer gives a metric called {' and '.join(taken)}, as each line's own number is")
        epoch = round(progress.step / self._run.updates_per_epoch, 4)
        line = {"step": progress.step, "epoch": epoch, **metrics}
        self._lines.write(line)
        for logger in self._loggers:
            logger.log(progress.step, line)
