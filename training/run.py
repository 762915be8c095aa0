"""Runs the phases of a training in order; it can be interrupted at any time and resumes exactly.

The run folder contains ``latest.pth`` (see :mod:`rbvsr_deploy.training.checkpoints`),
``log.jsonl``, ``config.json``, TensorBoard's files, and at the end ``model.safetensors``. The same
command resumes from ``latest.pth``; on one machine in float32, the result is bit-identical. Several
processes (``torchrun``) share every batch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
import torch
from lightning_fabric import Fabric
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from rbvsr_deploy.errors import CheckpointError, RbvsrError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.signals import handle_termination
from rbvsr_deploy.training.checkpoints import (
    RunState,
    read_checkpoint,
    restore,
    save_batches,
    save_checkpoint,
)
from rbvsr_deploy.training.clips import ClipDataset, batches
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.evaluation.metrics.alexnet import (
    AlexNetDistance,
    load_alexnet_distance,
    lpips_file,
)
from rbvsr_deploy.training.initial_weights import load_flow, load_stage
from rbvsr_deploy.training.launch import launch
from rbvsr_deploy.training.log import RunLog
from rbvsr_deploy.training.networks import NotFiniteError, build_networks, update_average
from rbvsr_deploy.training.perceptual import PerceptualLoss, load_vgg19
from rbvsr_deploy.training.phases import FlowPhase, ImagePhase, Phase, RestorationPhase
from rbvsr_deploy.training.run_folder import run_folder, writes
from rbvsr_deploy.training.validation import Validation
from rbvsr_deploy.version import __version__

__all__ = ["OnStep", "train"]

logger = logging.getLogger(__name__)

OnStep = Callable[[str, int, int], None]
"""Function called with the phase, the number of its finished iterations, and their total."""


def train(
    config: TrainingConfig, *, output: Path, device: str = "auto", on_step: OnStep | None = None
) -> Path:
    """Train, or resume a training, in a run folder.

    Args:
        config: recipe of the run.
        output: run folder; created if missing.
        device: "cpu", "cuda", or "auto", which selects CUDA if a GPU is available.
        on_step: called after each iteration, in the first process only.

    Returns:
        Path of ``model.safetensors``, the averaged generator.

    Raises:
        RbvsrError: the recipe, its files or the run folder cannot be used, which is found before
            the first iteration; or a loss is not finite.
        KeyboardInterrupt, SystemExit: after Ctrl-C, termination or hang-up, once the checkpoint is
            written.
    """
    fabric = launch(config, device)
    with run_folder(output, first=fabric.is_global_zero):
        run = _Run(fabric, config, output)
        with _signals() as received:
            try:
                run.phases(received, on_step)
            finally:
                run.log.close()
        return run.finish()


# ----------------------------------------------------------------------------------------- signals


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Record the first signal to end, so that the iteration can finish; a second one ends the
    process.
    """
    received: list[int] = []
    with contextlib.ExitStack() as handled:

        def note(number: int, frame: object) -> None:
            received.append(number)
            handled.close()  # the handlers from before handle the second one

        handled.enter_context(handle_termination(note))
        yield received


# -------------------------------------------------------------------------------------------- a run


class _Run:
    """One run, with its networks, its position and its files."""

    def __init__(self, fabric: Fabric, config: TrainingConfig, output: Path) -> None:
        self.fabric, self.config, self.output = fabric, config, output
        # Check everything that a user may have got wrong first, before the slow steps.
        self.latest = output / "latest.pth"
        self.checkpoint = read_checkpoint(self.latest, config) if self.latest.exists() else None
        kinds: list[type[Phase]] = [RestorationPhase]
        if self._trains_flow():
            kinds.insert(0, FlowPhase)
        if config.images.iterations:
            kinds.insert(0, ImagePhase)
        self.datasets: dict[str, ClipDataset] = {}
        for kind in kinds:
            self.datasets[kind.name] = kind.dataset(config)
            self.datasets[kind.name].clips.check()
        self.validation = Validation(config) if config.validation.sources else None
        self.perceptual: PerceptualLoss | None = None
        if config.losses.perceptual_weight:
            vgg = load_vgg19(Path(config.losses.vgg) if config.losses.vgg else None)
            self.perceptual = PerceptualLoss(vgg, layer_weights=config.losses.perceptual_layers)
        self.lpips: AlexNetDistance | None = None
        if config.losses.lpips_weight:
            self.lpips = load_alexnet_distance(lpips_file(config.losses.lpips))

        self.networks = build_networks(config, fabric.device)
        self.state = RunState(phase=kinds[0].name)
        self.logged: list[dict[str, Tensor]] = []
        if self.checkpoint is not None:
            self.state = msgspec.convert(self.checkpoint["run"]["state"], RunState)
            self._check_batch()
            logger.info(
                "resuming after iteration %d of phase %s", self.state.iteration, self.state.phase
            )
        else:
            self._load_initial_weights()
        self.log = RunLog(
            output,
            length=self.state.log_bytes,
            phase=self.state.phase,
            iteration=self.state.iteration,
            silent=not fabric.is_global_zero,
        )
        if fabric.is_global_zero:
            text = json.dumps(msgspec.to_builtins(config), indent=1)
            with writes(output / "config.json"):
                write_atomically(output / "config.json", text.encode())

    def _trains_flow(self) -> bool:
        """Return true if the flow phase runs; refuse a flow network that would stay random."""
        flow, photos = self.config.flow, any(s.kind == "photos" for s in self.config.data.sources)
        known = flow.weights or self.config.load_from
        if not known and not flow.factor and not (flow.iterations and photos):
            raise RbvsrError(
                "the flow network would stay random: set flow.weights to a file, or train it (set "
                "flow.iterations, which needs photographs, or flow.factor above 0)"
            )
        if flow.iterations and not photos:
            logger.warning(
                "skipping the flow phase: it needs photographs, for which the motion is known, and "
                "the recipe has none"
            )
        return bool(flow.iterations and photos)

    def _check_batch(self) -> None:
        """Refuse to resume with another number of clips per iteration, as the learning rates and
        the optimisers' averages depend on that number.
        """
        state, config = self.state, self.config
        batches = {FlowPhase.name: config.flow.batch, ImagePhase.name: config.images.batch}
        batch = batches.get(state.phase, config.batch)
        now = self.fabric.world_size * batch * config.accumulate
        if state.clips != state.iteration * now:
            raise CheckpointError(
                f"'{self.latest}' belongs to a run with {state.clips // state.iteration} clips per "
                f"iteration, but this one has {now} (processes x batch x accumulate): change these "
                "to match, or start another run from that checkpoint in another folder",
                parameters=("load_from",),
            )

    def _load_initial_weights(self) -> None:
        if self.config.load_from:
            load_stage(Path(self.config.load_from), self.networks)
        if self.config.flow.weights:
            for network in (self.networks.generator, self.networks.average):
                load_flow(Path(self.config.flow.weights), network)

    # ---------------------------------------------------------------------------------------- loop

    def phases(self, received: list[int], on_step: OnStep | None) -> None:
        """Run the phases from the current position to the end."""
        names = list(self.datasets)
        for name in names[names.index(self.state.phase) :]:
            if name != self.state.phase:
                self.state = RunState(phase=name, seconds=self.state.seconds)
            self.iterations(self._phase(name), received, on_step)
            if name != names[-1]:
                self._adopt_average(name)

    def _phase(self, name: str) -> Phase:
        fabric, config, networks = self.fabric, self.config, self.networks
        if name == FlowPhase.name:
            return FlowPhase(fabric, config, networks)
        kind = ImagePhase if name == ImagePhase.name else RestorationPhase
        return kind(fabric, config, networks, perceptual=self.perceptual, lpips=self.lpips)

    def _adopt_average(self, name: str) -> None:
        """Prepare the generator and its average for the next phase."""
        generator, average = self.networks.generator, self.networks.average
        if name == FlowPhase.name:
            # The average over such a short training is meaningless.
            average.load_state_dict(generator.state_dict())
        else:
            generator.load_state_dict(average.state_dict())

    def iterations(self, phase: Phase, received: list[int], on_step: OnStep | None) -> None:
        """Iterate until the phase is finished or a signal arrives."""
        self._restore_into(phase)
        state, every = self.state, self.config.output
        with contextlib.closing(self._batches(phase)) as clips:
            while state.iteration < phase.iterations:
                self._iteration(phase, clips)
                done = state.iteration == phase.iterations
                if done or state.iteration % every.log_every == 0:
                    self._log(phase)
                self._log_images_and_validation(phase)
                if on_step is not None and self.fabric.is_global_zero:
                    on_step(phase.name, state.iteration, phase.iterations)
                stop = self._all_reduce(torch.tensor(float(len(received))))
                if stop or done or state.iteration % every.checkpoint_every == 0:
                    self._save(phase)
                if stop:
                    self._end(received)

    def _end(self, received: list[int]) -> NoReturn:
        """End the process as its signal would, or as SIGTERM if another process received it."""
        number = received[0] if received else signal.SIGTERM
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def _iteration(self, phase: Phase, clips: Iterator[dict[str, Tensor]]) -> None:
        state, started = self.state, time.monotonic()
        parts = [next(clips) for _ in range(self.config.accumulate)]
        waited = time.monotonic() - started
        phase.set_learning_rates(state.iteration)
        try:
            values = phase.step(parts)
        except NotFiniteError:
            raise RbvsrError(self._save_wrong(parts)) from None
        update_average(self.networks, decay=self.config.optimizer.ema_decay)
        self.logged.append({**values, "waited": values["loss"].new_tensor(waited)})
        state.iteration += 1
        state.clips += phase.batch * len(parts) * self.fabric.world_size
        state.seconds += time.monotonic() - started

    def _batches(self, phase: Phase) -> Generator[dict[str, Tensor], None, None]:
        return batches(
            self.datasets[phase.name],
            start=self.state.clips,
            batch=phase.batch,
            rank=self.fabric.global_rank,
            processes=self.fabric.world_size,
            workers=self.config.workers,
            pin=self.fabric.device.type == "cuda",
        )

    def _log(self, phase: Phase) -> None:
        """Log the means over the iterations since the last line, and over the processes."""
        stacked = torch.stack([torch.stack(list(values.values())) for values in self.logged])
        means = self._all_reduce(stacked.mean(dim=0)) / self.fabric.world_size
        values = dict(zip(self.logged[0], means.tolist(), strict=True))
        rates = {f"{name}_rate": o.param_groups[0]["lr"] for name, o in phase.optimizers.items()}
        values |= {**rates, "seconds": self.state.seconds}
        self.logged = []
        self.log.scalars(phase.name, self.state.iteration, values)

    def _all_reduce(self, value: Tensor) -> Tensor:
        """Sum a value over the processes."""
        total = self.fabric.all_reduce(value.to(self.fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)  # like its input
        return total

    def _log_images_and_validation(self, phase: Phase) -> None:
        """Log images and the validation, if they are due."""
        config, iteration = self.config, self.state.iteration
        every = config.output.pictures_every
        if every and iteration % every == 0 and (strip := phase.strip()) is not None:
            self.log.image(phase.name, iteration, strip)
        due = iteration % config.validation.every == 0 or iteration == phase.iterations
        if self.validation is not None and phase.name != FlowPhase.name and due:
            values = self.validation.measure(self.fabric, self.networks.average)
            self.log.scalars(phase.name, iteration, values)

    # --------------------------------------------------------------------------------------- files

    def _restore_into(self, phase: Phase) -> None:
        """Restore everything from the checkpoint, once after a restart."""
        if self.checkpoint is None:
            return
        restore(self.checkpoint, networks=self.networks, optimizers=phase.optimizers)
        if scaler := self.checkpoint["run"]["scaler"]:  # empty if the run so far was not float16
            self.fabric.strategy.precision.load_state_dict(scaler)
        self.checkpoint = None

    def _save(self, phase: Phase) -> None:
        """Save the latest checkpoint, and one to keep if that is due."""
        if not self.fabric.is_global_zero:
            return
        self.state.log_bytes = self.log.length
        keep_every, iteration = self.config.output.keep_every, self.state.iteration
        paths = [self.latest]
        if keep_every and iteration % keep_every == 0 and phase.name == RestorationPhase.name:
            paths.append(self.output / f"iteration_{iteration}.pth")
        for target in paths:
            save_checkpoint(
                target,
                state=self.state,
                config=self.config,
                networks=self.networks,
                optimizers=phase.optimizers,
                scaler=self.fabric.strategy.precision.state_dict(),
            )

    def _save_wrong(self, parts: list[dict[str, Tensor]]) -> str:
        """Save the batches that led to a loss that is not finite, and return the error message."""
        state, rank = self.state, self.fabric.global_rank
        path = self.output / f"not_finite_{state.phase}_{state.iteration}_{rank}.pt"
        save_batches(path, parts, networks=self.networks)
        return (
            f"the loss or its gradient is not finite at iteration {state.iteration} of "
            f"{state.phase}: its clips and the weights are in '{path}'; lower the learning rates, "
            "or set optimizer.clip_norm, and resume from the last checkpoint"
        )

    def finish(self) -> Path:
        """Write the averaged generator to its own file and return the path."""
        path = self.output / "model.safetensors"
        if self.fabric.is_global_zero:
            weights = {
                k: v.cpu().contiguous() for k, v in self.networks.average.state_dict().items()
            }
            made = f"trained by rbvsr-deploy {__version__}, {self.state.iteration} iterations"
            with writes(path):
                write_atomically(path, safetensors_bytes(weights, metadata={"provenance": made}))
        self.fabric.barrier()
        return path
