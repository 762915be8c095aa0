"""A training run: its phases one after the other, and everything that lets it be stopped at any
moment and go on exactly.

The run folder holds ``latest.pth`` (see :mod:`rbvsr_deploy.training.checkpoints`), ``log.jsonl``,
``config.json``, TensorBoard's files, and in the end ``model.safetensors``. The same command goes on
from ``latest.pth``, on one machine in float32 bit for bit. Several processes (``torchrun``) share
every batch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from rbvsr_deploy.errors import CheckpointError, RbvsrError
from rbvsr_deploy.files import write_atomically
from rbvsr_deploy.training.checkpoints import (
    RunState,
    read_checkpoint,
    restore,
    save_batches,
    save_checkpoint,
)
from rbvsr_deploy.training.clips import ClipDataset, batches
from rbvsr_deploy.training.config import TrainingConfig
from rbvsr_deploy.training.initial_weights import load_flow, load_stage
from rbvsr_deploy.training.launch import launch
from rbvsr_deploy.training.log import RunLog
from rbvsr_deploy.training.networks import NotFiniteError, build_networks, update_average
from rbvsr_deploy.training.perceptual import PerceptualLoss, load_vgg19
from rbvsr_deploy.training.phases import FlowPhase, Phase, RestorationPhase
from rbvsr_deploy.training.run_folder import make_run_folder, writes
from rbvsr_deploy.training.validation import Validation
from rbvsr_deploy.version import __version__

__all__ = ["OnStep", "train"]

logger = logging.getLogger(__name__)

OnStep = Callable[[str, int, int], None]
"""Phase, iterations done in it, iterations it has."""


def train(
    config: TrainingConfig, *, output: Path, device: str = "auto", on_step: OnStep | None = None
) -> Path:
    """Train, or go on training, in a run folder.

    Args:
        output: run folder; made if it is missing.
        device: "cpu", "cuda", or "auto" for CUDA where there is a GPU.
        on_step: called after each iteration, in the first process only.

    Returns:
        ``model.safetensors``: the averaged generator.

    Raises:
        RbvsrError: before the first iteration, anything that the recipe, its files or the run
            folder are wrong in; later, a loss that is not finite.
        KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, once the checkpoint is written.
    """
    fabric = launch(config, device)
    make_run_folder(output)
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
    """The first SIGINT or SIGTERM is noted, so that the iteration ends first; the next one ends the
    process.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        received.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -------------------------------------------------------------------------------------------- a run


class _Run:
    """One run: networks, where it is, and its files."""

    def __init__(self, fabric: Fabric, config: TrainingConfig, output: Path) -> None:
        self.fabric, self.config, self.output = fabric, config, output
        # What a user may have got wrong comes first, before anything takes long.
        self.latest = output / "latest.pth"
        self.checkpoint = read_checkpoint(self.latest, config) if self.latest.exists() else None
        kinds: list[type[Phase]] = [RestorationPhase]
        if self._trains_flow():
            kinds.insert(0, FlowPhase)
        self.datasets: dict[str, ClipDataset] = {}
        for kind in kinds:
            self.datasets[kind.name] = kind.dataset(config)
            self.datasets[kind.name].clips.check()
        self.validation = Validation(config) if config.validation.sources else None
        self.perceptual: PerceptualLoss | None = None
        if config.losses.perceptual_weight:
            vgg = load_vgg19(Path(config.losses.vgg) if config.losses.vgg else None)
            self.perceptual = PerceptualLoss(vgg, layer_weights=config.losses.perceptual_layers)

        self.networks = build_networks(config, fabric.device)
        self.state = RunState(phase=kinds[0].name)
        self.logged: list[dict[str, Tensor]] = []
        if self.checkpoint is not None:
            self.state = msgspec.convert(self.checkpoint["run"]["state"], RunState)
            self._check_batch()
            logger.info("going on from %s %d", self.state.phase, self.state.iteration)
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
        """Whether the first phase takes place; refuses a flow network that would stay random."""
        flow, photos = self.config.flow, any(s.kind == "photos" for s in self.config.data.sources)
        known = flow.weights or self.config.load_from
        if not known and not flow.factor and not (flow.iterations and photos):
            raise RbvsrError(
                "the flow network would stay random: name its weights as flow.weights, or train it "
                "(flow.iterations, which needs photographs, or flow.factor above 0)"
            )
        if flow.iterations and not photos:
            logger.warning(
                "there are no photographs to train on, whose motion would be known: the flow "
                "network is not trained beforehand"
            )
        return bool(flow.iterations and photos)

    def _check_batch(self) -> None:
        """Refuse to go on with another number of clips per iteration: the learning rates and the
        optimisers' averages are those of that number.
        """
        state, config = self.state, self.config
        batch = config.flow.batch if state.phase == FlowPhase.name else config.batch
        now = self.fabric.world_size * batch * config.accumulate
        if state.clips != state.iteration * now:
            raise CheckpointError(
                f"'{self.latest}' belongs to a run with {state.clips // state.iteration} clips per "
                f"iteration, and this one has {now}, processes x batch x accumulate: set those to "
                "give as many, or begin another run from it in another folder",
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
        """Everything from where the run is to its end."""
        if self.state.phase == FlowPhase.name:
            self.iterations(FlowPhase(self.fabric, self.config, self.networks), received, on_step)
            # The average of a network most of which has not been trained says nothing.
            self.networks.average.load_state_dict(self.networks.generator.state_dict())
            self.state = RunState(phase=RestorationPhase.name, seconds=self.state.seconds)
        phase = RestorationPhase(
            self.fabric, self.config, self.networks, perceptual=self.perceptual
        )
        self.iterations(phase, received, on_step)

    def iterations(self, phase: Phase, received: list[int], on_step: OnStep | None) -> None:
        """Iterate until the phase is done, or a signal comes."""
        self._restore_into(phase)
        state, every = self.state, self.config.output
        with contextlib.closing(self._batches(phase)) as clips:
            while state.iteration < phase.iterations:
                self._iteration(phase, clips)
                done = state.iteration == phase.iterations
                if done or state.iteration % every.log_every == 0:
                    self._log(phase)
                self._look(phase)
                if on_step is not None and self.fabric.is_global_zero:
                    on_step(phase.name, state.iteration, phase.iterations)
                stop = self._all_reduce(torch.tensor(float(len(received))))
                if stop or done or state.iteration % every.checkpoint_every == 0:
                    self._save(phase)
                if stop:
                    raise KeyboardInterrupt if signal.SIGINT in received else SystemExit(143)

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
        """Means over the iterations since the last line, and over the processes."""
        stacked = torch.stack([torch.stack(list(values.values())) for values in self.logged])
        means = self._all_reduce(stacked.mean(dim=0)) / self.fabric.world_size
        values = dict(zip(self.logged[0], means.tolist(), strict=True))
        rates = {f"{name}_rate": o.param_groups[0]["lr"] for name, o in phase.optimizers.items()}
        values |= {**rates, "seconds": self.state.seconds}
        self.logged = []
        self.log.scalars(phase.name, self.state.iteration, values)

    def _all_reduce(self, value: Tensor) -> Tensor:
        """Sum over the processes."""
        total = self.fabric.all_reduce(value.to(self.fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)  # as what was given
        return total

    def _look(self, phase: Phase) -> None:
        """Pictures and validation, when it is their turn."""
        config, iteration = self.config, self.state.iteration
        every = config.output.pictures_every
        if every and iteration % every == 0 and (strip := phase.strip()) is not None:
            self.log.picture(phase.name, iteration, strip)
        due = iteration % config.validation.every == 0 or iteration == phase.iterations
        if self.validation is not None and phase.name == RestorationPhase.name and due:
            values = self.validation.measure(self.fabric, self.networks.average)
            self.log.scalars(phase.name, iteration, values)

    # --------------------------------------------------------------------------------------- files

    def _restore_into(self, phase: Phase) -> None:
        """Once after a restart: everything that the checkpoint holds."""
        if self.checkpoint is None:
            return
        restore(self.checkpoint, networks=self.networks, optimizers=phase.optimizers)
        if scaler := self.checkpoint["run"]["scaler"]:  # none if it was not float16 until here
            self.fabric.strategy.precision.load_state_dict(scaler)
        self.checkpoint = None

    def _save(self, phase: Phase) -> None:
        """The latest checkpoint, and one to keep if it is its turn."""
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
        """Keep what made a loss infinite, and say so."""
        state, rank = self.state, self.fabric.global_rank
        path = self.output / f"not_finite_{state.phase}_{state.iteration}_{rank}.pt"
        save_batches(path, parts, networks=self.networks)
        return (
            f"the loss or its gradient is not finite at iteration {state.iteration} of "
            f"{state.phase}: its clips and the weights are in '{path}'; lower the learning rates, "
            "or set optimizer.clip_norm, and go on from the checkpoint before it"
        )

    def finish(self) -> Path:
        """The averaged generator in a file of its own."""
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
