"""One training run from its first step to its last: what `python -m train.wt103` does, once it may begin."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

from autograd.errors import InputError
from autograd.profile import span, spans_of
from minilstm import LanguageModel, MaskStream
from train.agreement import check_agreement
from train.batches import Batches, RankRows
from train.checkpoint import load_checkpoint, load_newest
from train.clock import Clock
from train.communicator import Communicator
from train.config import RunConfig
from train.corpus import Corpus
from train.device import Host
from train.device_step import DeviceStep
from train.ending import end_run
from train.evaluate import evaluate
from train.log import TrainingDisplay
from train.memory import told_of_gpu_memory
from train.metrics import MetricsLog, read_metrics
from train.mixed_precision import LONG_AT_LOWEST, LOWEST_SCALE, LossScaler
from train.plan import make_optimizer, make_scaler, schedule_of, total_steps, windows_of
from train.profile import DATA, STEP, StepProfile
from train.rank_watch import RankWatch, last_signs
from train.run_folder import (
    BEST,
    LATEST,
    Position,
    RunFolder,
    checkpoint_facts,
    load_weights,
    restore_run,
    save_run,
)
from train.signals import StopRequest, StopRequestedError, name_of
from train.step import StepResult, StepUnderWay, TrainingStep


class Launched(NamedTuple):
    """A step that is not counted yet, and the length of its window."""

    step: StepUnderWay
    window: int


class TrainingRun:
    """One training run: model, data, optimizer, and where it stands."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        corpus: Corpus,
        communicator: Communicator,
        rows: RankRows,
        profile_steps: int = 0,
        device: Host | None = None,
    ) -> None:
        train = config.train
        self.device = device or Host()
        self.config, self.train_config, self.folder = config, train, folder
        self.corpus, self.communicator, self.rows = corpus, communicator, rows
        num_tokens = corpus.num_tokens("train")
        self.windows = windows_of(train)
        self.batches = Batches(self._reader("train"), num_tokens, train.batch_size, self.windows, rows)
        self.total_steps = total_steps(train, self.batches.length)
        self.schedule = schedule_of(train, self.batches.length)
        self.model = LanguageModel(config.model_config(len(corpus.vocabulary)), seed=train.seed)
        self.model.move_to(self.device.xp)
        self.optimizer = make_optimizer(self.model, train)
        self.scaler = make_scaler(train)
        self.step = self._make_step()
        self.profile = StepProfile(profile_steps, communicator, folder.trace)
        self.position = Position()
        self.watch = RankWatch(
            folder.signs,
            communicator,
            train.rank_timeout,
            train.stall_timeout,
            advice=f"--resume goes on from the last checkpoint of {folder.path}",
        )
        self.state: Any = None
        self.launched: Launched | None = None
        self.steps_at_lowest = 0

    def _make_step(self) -> TrainingStep:
        train = self.train_config
        common = (self.model, self.optimizer, self.communicator)
        options: Any = {
            "clip_norm": train.clip_norm,
            "accumulate": train.accumulate,
            "l2_tied": train.l2_tied,
            "scaler": self.scaler,
            "check_values": train.detect_anomaly,
        }
        if not self.device.is_gpu:
            return TrainingStep(*common, **options)
        options |= {"graphs": train.graphs, "wavefront": train.wavefront, "tell": self._tell}
        return DeviceStep(*common, self.device, **options)

    def _tell(self, line: str) -> None:
        if self.communicator.is_root:
            print(line, flush=True)

    def _share_weights(self) -> None:
        """The root's weights on every rank: the seed makes them equal, this makes sure."""
        weights = self.device.to_host(self.model.flat_parameters)
        self.communicator.broadcast_(weights)
        if self.device.is_gpu:
            self.model.flat_parameters[...] = self.device.to_device(weights)

    def begin(self, resume: bool) -> None:
        """Make the run's folder, or go on from its latest checkpoint."""
        latest, root = self.folder.checkpoint(LATEST), self.communicator.is_root
        path = self.communicator.use_device(self.device, self.train_config.allreduce_dtype == "float16")
        if self.device.is_gpu:
            self._tell(f"device: cuda, {self.device.name}")
        if path:
            self._tell(path)
        self._share_weights()
        if not resume:
            if root:
                self.folder.create(self.config, self.corpus.vocabulary)
        elif self.communicator.broadcast_json(self.folder.has_latest()):
            found = load_newest(latest)
            own = slice(self.rows.first, self.rows.first + self.rows.count)
            self.position, self.state = restore_run(
                found,
                self.model,
                self.corpus.fingerprint,
                self.optimizer,
                own,
                self._streams(),
                self.scaler,
                self.step.dtype,
            )
            if self.state is not None:
                self.state = [tuple(map(self.device.to_device, pair)) for pair in self.state]
            self.communicator.barrier()  # all have read what the root may now rename
            if root:
                self.folder.leave_damaged(found)
        self.step.take_weights()
        self.watch.step = self.position.step
        if self.position.step > self.total_steps:
            raise InputError(
                f"{self.folder.path}: has made {self.position.step} steps, more than the {self.total_steps} "
                "that max_steps, max_tokens and epochs allow; raise them"
            )
        if resume and root:
            self.folder.update(self.config, self.corpus.vocabulary)
            for sign in last_signs(self.folder.signs):
                print(f"the ranks before did not end well: {sign}, last seen after step {sign.step:,}")
            print(f"going on after step {self.position.step:,} of {self.total_steps:,}", flush=True)
        self._check_agreement()

    def _check_agreement(self) -> None:
        """Stop unless all ranks hold the same weights, words and knobs, and stand at the same step."""
        facts = {
            "weights": self.model.flat_parameters,
            "words": self.corpus.fingerprint,
            "knobs": self.config.to_dict(),
            "position": [self.position.step, self.position.epoch, self.position.window],
        }
        check_agreement(self.communicator, f"after step {self.position.step:,}", facts)

    def _streams(self) -> dict[str, Any]:
        train = self.train_config
        return {
            "seed": train.seed,
            "batch_size": train.batch_size,
            "window": train.window,
            "carry_state": train.carry_state,
            "random_start": train.random_start,
            "shuffle_windows": train.shuffle_windows,
            "variable_window": train.variable_window,
            "train_tokens": self.corpus.num_tokens("train"),
        }

    def train(self) -> None:
        """All steps that are still to be made.

        SIGTERM and SIGINT end it after the step, or in the validation, that it is in: it saves, and raises
        SystemExit with status 128 + signal.

        Raises:
            InputError: it diverges, or the GPU's memory does not hold a step.
        """
        with told_of_gpu_memory(self.device, self.model.config, self.train_config, self.communicator.size):
            self._train()

    def _train(self) -> None:
        position, root = self.position, self.communicator.is_root
        with (
            MetricsLog(self.folder.metrics, position.step, root, position.pending) as self.metrics,
            TrainingDisplay(self.total_steps, position.step, enabled=root) as self.display,
            StopRequest(self.communicator) as self.stop,
        ):
            self.clock = Clock(position.seconds, position.tokens)
            try:
                self._steps()
            except StopRequestedError as interrupted:
                self._save_and_exit(interrupted.signal_number)

    def _steps(self) -> None:
        position = self.position
        if position.pending or (position.step == self.total_steps and position.best is None):
            self._evaluate_and_save()  # interrupted before; or ended before by a limit that was higher
        while position.step < self.total_steps:
            for inputs, targets in spans_of(DATA, self.batches.windows(position.window, position.epoch)):
                self._step(inputs, targets)
                self._show(self.profile.after_step())
                if position.step == self.total_steps:
                    break
        signal_number = self.stop.agreed(self.communicator.allreduce_sum(self.stop.flags()).tolist())
        if signal_number:
            raise StopRequestedError(signal_number)
        self._show(self.profile.close())

    def _step(self, inputs: Any, targets: Any) -> None:
        """Launch a step, and count all whose results are there, or must be.

        On a GPU the result of one step is looked at while the next one runs, unless something is to be done
        right after it: what is counted, written and saved is what a run that waits for each step has.
        """
        position, late = self.position, self.launched
        unknown = int(late is not None)
        made = position.step + position.skipped_steps + unknown
        masks = MaskStream(self.train_config.seed, made, self.rows.first)
        rate = self._rate(position.step + unknown, len(targets))
        after_skip = self._rate(position.step, len(targets)) if late else None
        with span(STEP):
            step = self.step.begin(inputs, targets, self.state, masks, rate, self.stop, after_skip)
            self.launched = Launched(step, len(targets))
            stopping = late is not None and self._count(late)
        self._pass_window(step.state)
        looks_late = self.device.is_gpu and not self.train_config.detect_anomaly
        if not looks_late or stopping or self._is_due_next():
            late, self.launched = self.launched, None
            self._count(late)

    def _rate(self, updates: int, window: int) -> float:
        """The learning rate after so many updates, for a window of this length."""
        return self.schedule(updates) * self.windows.rate_factor(window)

    def _save_and_exit(self, signal_number: int) -> NoReturn:
        """Save where the run stands and end it, on every rank alike."""
        with self.clock.paused():
            self._check_agreement()  # as before every other checkpoint
            self._save(LATEST)
        self._show(
            f"{name_of(signal_number)}: stopped after step {self.position.step:,} of {self.total_steps:,} "
            "and saved; go on with --resume"
        )
        self._show(self.profile.close())
        self.communicator.barrier()  # the others' end would be the root's, which may still write
        raise SystemExit(128 + signal_number)

    def _show(self, message: str | None) -> None:
        if message:
            self.display.message(message)

    def _pass_window(self, state: Any) -> None:
        """Go on to the next window; at the end of an epoch the streams start again, and so does the state."""
        position = self.position
        self.state = state if self.train_config.carry_state else None
        position.window += 1
        if position.window == self.batches.num_windows(position.epoch):
            position.epoch, position.window, self.state = position.epoch + 1, 0, None

    def _count(self, launched: Launched) -> bool:
        """Count a step that has passed its window, and do what is due after it; whether a signal came.

        A window whose loss or gradient is not finite made no update: it is passed over and counted apart.

        Raises:
            StopRequestedError: a signal came, and no step is under way. InputError: the run must end.
        """
        position, result = self.position, launched.step.finish()
        if result.is_finite:
            learning_rate = self._rate(position.step, launched.window)
            position.step += 1
            position.tokens += launched.window * self.train_config.batch_size
            position.loss_sum, position.loss_steps = position.loss_sum + result.loss, position.loss_steps + 1
            position.bad_steps = 0
            self._log(result, learning_rate)
        else:
            self._skip(result)
        self.watch.step = position.step
        if self.scaler:
            self._watch_scale(self.scaler)
        if result.stop_signal:
            if self.launched is None:
                position.pending = any(self._due())
                raise StopRequestedError(result.stop_signal)
            return True
        self._evaluate_and_save()
        every = self.train_config.check_ranks_every
        if every and position.step % every == 0:
            self._check_agreement()
        return False

    def _skip(self, result: StepResult) -> None:
        """Count a step without an update; InputError if that is the end of the run.

        In mixed precision they belong to it, until the loss scale cannot be lowered any more.
        """
        position, most = self.position, self.train_config.max_bad_steps
        position.skipped_steps, position.bad_steps = position.skipped_steps + 1, position.bad_steps + 1
        if self.scaler:
            if self.scaler.is_exhausted:
                raise self._out_of_range(self.scaler)
            self._show(
                f"no update after step {position.step:,}: float16 overflowed, the loss scale is now "
                f"{self.scaler.scale:,g}; skipped {position.skipped_steps:,} so far"
            )
            return
        if position.bad_steps >= most:
            raise self._diverged(result)
        self._show(
            f"no update after step {position.step:,}: loss {result.loss:.4g}, gradient norm "
            f"{result.grad_norm:.4g}; skipped {position.skipped_steps:,} so far, "
            f"{position.bad_steps} in a row of at most {most}"
        )

    def _watch_scale(self, scaler: LossScaler) -> None:
        """Tell once of a loss scale that stays at its lowest; to LogMax it may happen for a while."""
        self.steps_at_lowest = self.steps_at_lowest + 1 if scaler.scale <= LOWEST_SCALE else 0
        if self.steps_at_lowest == LONG_AT_LOWEST:
            self._show(
                f"the loss scale has been at its lowest, {scaler.scale:g}, for {LONG_AT_LOWEST} steps: "
                "gradients below 6e-8 are lost; lower learning_rate, or go on with --resume "
                "--precision float32"
            )

    def _out_of_range(self, scaler: LossScaler) -> InputError:
        return InputError(
            f"float16 overflowed {scaler.overflows_at_lowest} times at step {self.position.step + 1} or just "
            f"before it although the loss scale was at its lowest, {scaler.scale:g}; {self._kept()}lower "
            "learning_rate, or go on with --resume --precision float32"
        )

    def _diverged(self, result: StepResult) -> InputError:
        advice = (
            "lower learning_rate or clip_norm"
            if self.train_config.clip_norm > 0
            else "--set clip_norm=0.25, or lower learning_rate"
        )
        return InputError(
            f"training diverged at step {self.position.step + 1}: {self.position.bad_steps} windows in a row "
            f"gave no update, the last one loss {result.loss}, gradient norm {result.grad_norm}; "
            f"{self._kept()}{advice}; --detect-anomaly names the first value that is not finite"
        )

    def _kept(self) -> str:
        """The clause of an error that names the last good checkpoint; empty before there is one."""
        latest = self.folder.checkpoint(LATEST)
        return f"the checkpoint {latest} is as it was; " if latest.exists() else ""

    def _log(self, result: StepResult, learning_rate: float) -> None:
        """A row of metrics.jsonl every `log_every` steps: the mean loss since the last one."""
        position = self.position
        if position.step % self.train_config.log_every and position.step != self.total_steps:
            return
        loss = position.loss_sum / position.loss_steps
        position.loss_sum, position.loss_steps = 0.0, 0
        row = {
            "kind": "train",
            "step": position.step,
            "tokens": position.tokens,
            "epoch": self._epochs_done(),
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "skipped_steps": position.skipped_steps,
            "tokens_per_second": self.clock.tokens_per_second(position.tokens),
            "seconds": self.clock.seconds(),
        }
        if self.scaler:
            row["loss_scale"] = self.scaler.scale
        self.metrics.write(row)
        self.display.update(row)

    def _due(self) -> tuple[bool, bool]:
        """Whether this step is to be validated: because the run ends with it; because it is scheduled."""
        step, updated = self.position.step, self.position.bad_steps == 0
        return step == self.total_steps, updated and self._is_scheduled(step)  # else it has been done

    def _is_scheduled(self, step: int) -> bool:
        """Whether a validation belongs behind this update."""
        every = self.train_config.evaluate_every
        return step % every == 0 if every else self.position.window == 0

    def _is_to_be_saved(self, step: int) -> bool:
        """Whether a checkpoint belongs behind this update, whatever is validated."""
        every = self.train_config.save_every
        return every > 0 and step % every == 0

    def _is_due_next(self) -> bool:
        """Whether anything will be due after the step that is under way, if it has made its update."""
        step, check_ranks = self.position.step + 1, self.train_config.check_ranks_every
        checked = check_ranks > 0 and step % check_ranks == 0
        ends = step == self.total_steps
        return ends or checked or self._is_scheduled(step) or self._is_to_be_saved(step)

    def _evaluate_and_save(self) -> None:
        """What is due after a window."""
        position = self.position
        last, scheduled = self._due()
        save_now = last or scheduled or (position.bad_steps == 0 and self._is_to_be_saved(position.step))
        with self.clock.paused():
            if save_now:
                self._check_agreement()  # nothing is kept of ranks that have drifted apart
            if last or scheduled:
                position.pending = True
                self._validate(scheduled)
            position.pending = False
            if save_now:
                self._save(LATEST)

    def _validate(self, scheduled: bool) -> None:
        """Score the validation split, keep the weights if they are the best, and tell the optimizer.

        Not of the one that comes only because the run ends here: with more steps there would be none, and
        NT-ASGD, which counts validations, must go on after --resume as it would have without the stop.
        """
        position = self.position
        with self.optimizer.evaluation_weights():
            score = self._evaluate("valid", stop=self.stop)
            if position.best is None or score["loss"] < position.best["loss"]:
                position.best = {"step": position.step, **score}
                self._save(BEST)
        change = self.optimizer.validated(score["loss"]) if scheduled else None
        self._show(change)

    def _evaluate(self, split: str, write: bool = True, stop: StopRequest | None = None) -> dict[str, Any]:
        """Score a split with the weights that the model holds now, show the result and write it down."""
        train, position = self.train_config, self.position
        result = evaluate(
            self.model,
            self._reader(split),
            self.corpus.num_tokens(split),
            self.corpus.vocabulary.eos_id,
            self.communicator,
            train.evaluation_batch_size,
            train.evaluation_window,
            description=f"scoring {split}",
            protocol=train.evaluation_protocol,
            stop=stop,
        )
        row = {"kind": "evaluation", "split": split, "step": position.step, "tokens": position.tokens}
        row |= {"epoch": self._epochs_done(), **result}
        if write:
            self.metrics.write(row)
        self.display.evaluation(row)
        return result

    def _save(self, which: str) -> None:
        """`latest` holds all that a resumed run needs, `best` the weights."""
        self.position.seconds = self.clock.seconds()
        facts = checkpoint_facts(
            self.model, self.position, self.corpus.fingerprint, self._streams(), self.scaler
        )
        whole = which == LATEST
        optimizer, state = (self.optimizer, self.state) if whole else (None, None)
        keep = self.train_config.keep_checkpoints if whole else None
        self.metrics.sync()  # a checkpoint counts on the rows before it
        save_run(self.folder.checkpoint(which), self.model, facts, optimizer, state, self.communicator, keep)

    def finish(self) -> None:
        """Score the best weights on the test split; write result.json, the plot and a sample of text."""
        best = self.folder.checkpoint(BEST)
        self.communicator.barrier()  # the root has written it
        arrays, facts = load_checkpoint(best)
        load_weights(best, self.model, arrays, facts, self.corpus.fingerprint)
        self.position.best = facts["position"]["best"]  # a kill may have come between best.h5 and latest.h5
        root = self.communicator.is_root
        with (
            MetricsLog(self.folder.metrics, self.position.step, enabled=root) as self.metrics,
            TrainingDisplay(self.total_steps, self.position.step, enabled=root) as self.display,
        ):
            test = self._evaluate("test", write=not self._is_tested())
        if root:
            end_run(self, test)

    def _is_tested(self) -> bool:
        """Whether metrics.jsonl has the test split's row already: this is a finished run, resumed."""
        return self.communicator.is_root and any(
            row["step"] == self.position.step and row.get("split") == "test"
            for row in read_metrics(self.folder.metrics)
        )

    def _reader(self, split: str) -> Any:
        return lambda start, stop: self.corpus.read(split, start, stop)

    def _epochs_done(self) -> float:
        position = self.position
        return position.epoch + position.window / self.batches.num_windows(position.epoch)
