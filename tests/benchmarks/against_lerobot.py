"""Training by `lerobot-train` and by this trainer: same policy, data, batch, optimizer and machine, in the same run.

    python tests/benchmarks/against_lerobot.py [--device cuda] [--full-size] [--steps 200] [--rounds 5] [--policies act ...]

Both programs run as they are, each in a process of its own, in turns; every round has its own seed. Shown are medians
over the rounds:
  samples/s      over all updates but the first 20, data and logging included
  of the bound   time of a bare forward, backward and fused AdamW step of the same model, on a batch that is there
                 already, over that of our whole update; both measured in turns in one process
  first update   from the start of the process to the end of the first update
  memory         the highest of the first 20 updates: of the process, or on the GPU
  loss           mean over the last fifth of the updates; of the same objective in both programs

The data set is made here: a point walks to a target, seen as numbers, as images or as video. On a CPU the policies are
small ones (lerobot's architecture, 1 to 12 million parameters); on CUDA, and with --full-size, they have lerobot's
default sizes, which a few tenths of a millisecond around an update do not show in.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ZOO = HERE.parent.parent / "experiment_models" / "zoo"
POLICIES, DATA = ("act", "diffusion"), ("low-dim", "image", "video")
CLOCKS = ("wall", "processor")
CAMERA, ENV_STATE = "observation.images.front", "observation.environment_state"
ACT = {"chunk": 16, "dim": 128, "heads": 4, "hidden": 512, "encoder_depth": 2, "decoder_depth": 1, "posterior_depth": 2}
ACT_NAMES = {
    "chunk": "chunk_size", "dim": "dim_model", "heads": "n_heads", "hidden": "dim_feedforward",
    "encoder_depth": "n_encoder_layers", "decoder_depth": "n_decoder_layers", "posterior_depth": "n_vae_encoder_layers",
}  # fmt: skip
UNET = {"step_dim": 64, "down_dims": [64, 128]}
WARM_UP = 20  # updates
LEARNING_RATE, CLIP = 1e-4, 10.0


def record(root: Path, kind: str, episodes: int, frames: int, size: int) -> None:
    """A point walks to a target by a proportional controller; images show both on a textured ground."""
    import numpy as np
    from datasets import disable_progress_bars
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    sizes = {"observation.state": 2, "action": 2} | ({ENV_STATE: 2} if kind == "low-dim" else {})
    features: dict[str, Any] = {key: {"dtype": "float32", "shape": (dim,), "names": None} for key, dim in sizes.items()}
    if kind != "low-dim":
        features[CAMERA] = {"dtype": kind, "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    disable_progress_bars()
    dataset = LeRobotDataset.create("local/benchmark", 10, features, root=root, use_videos=kind == "video")
    random = np.random.default_rng(0)
    ground = random.integers(0, 160, (size // 4 + 1, size // 4 + 1, 3), dtype=np.uint8)
    ground = ground.repeat(4, axis=0).repeat(4, axis=1)[:size, :size]
    for _ in range(episodes):
        point, target = random.uniform(-1, 1, (2, 2))
        for _ in range(frames):
            action = np.clip(3 * (target - point), -1, 1)
            frame = {"observation.state": point, "action": action, ENV_STATE: target}
            frame = {key: value.astype(np.float32) for key, value in frame.items() if key in sizes}
            if kind != "low-dim":
                image = ground + random.integers(0, 16, (size, size, 3), dtype=np.uint8)
                for place, colour in ((target, (255, 0, 0)), (point, (0, 0, 255))):
                    row, column = ((place + 1.5) / 3 * (size - 8)).astype(int).clip(0, size - 8)
                    image[row : row + 8, column : column + 8] = colour
                frame[CAMERA] = image
            dataset.add_frame({**frame, "task": "reach"})
            point = point + 0.1 * action + 0.02 * random.normal(size=2)
        dataset.save_episode()
    dataset.finalize()


def our_config(policy: str, kind: str, root: Path, run_dir: Path, seed: int, given: argparse.Namespace) -> dict:
    """What `their_arguments` say, in our words."""
    sizes = {
        "state_dim": 2,
        "action_dim": 2,
        "env_dim": 2 if kind == "low-dim" else 0,
        "cameras": int(kind != "low-dim"),
    }
    # lerobot leaves the environment's state as it is, in both policies
    normalization = {ENV_STATE: "identity"} if kind == "low-dim" else {CAMERA: "imagenet"}
    data: dict[str, Any] = {"root": str(root), "local_files_only": True}
    data |= {"video_backend": "pyav"} if kind == "video" else {}
    optimizer: dict[str, Any] = {"peak_lr": LEARNING_RATE}
    train: dict[str, Any] = {}
    if policy == "act":
        model, params = ZOO / "act" / "act.yaml", sizes | (ACT if given.small else {})
        train |= {"trainer": {"type": "act_trainer"}, "loss": {"type": "act_loss"}}
        data["action_horizon"] = ACT["chunk"] if given.small else 100
        optimizer |= {"end_lr": LEARNING_RATE, "weight_decay": 1e-4}
    else:
        model, params = HERE / "peer" / "diffusion_policy.yaml", sizes | (UNET if given.small else {})
        steps = {"diffusion_steps": 20 if given.small else 100}
        train |= {"trainer": {"type": "peer_diffusion_trainer", "params": steps}, "loss": {"type": "l2_loss"}}
        data |= {"action_horizon": 16, "action_offset": -1, "obs_proprio_history": 2}
        data |= {} if kind == "low-dim" else {"obs_images_history": 2}
        optimizer |= {"weight_decay": 1e-6, "betas": [0.95, 0.999], "warmup_steps": given.steps // 10}
        normalization |= {"action": "min_max", "observation.state": "min_max"}
    return {
        "plugins": [] if policy == "act" else ["diffusion_plugin"],
        "seed": seed,
        "model": {
            "component_config_paths": {"policy": str(model)},
            "component_params": {"policy": params},
            "component_optims": {"policy": {"type": "adamw_warmup_cosine_decay", "params": optimizer}},
        },
        "data": {
            "datamodule": {"type": "lerobot_dataset_factory", "params": data},
            "batch_size": given.batch_size,
            "num_workers": given.workers,
            "normalization": normalization,
        },
        "train": {
            **train,
            "precision": given.precision,
            "clip_grad_norm": CLIP,
            "max_steps": given.steps,
            "log_every": WARM_UP,
            "save_dir": str(run_dir),
            "save_every_steps": given.steps,
        },
    }


def their_arguments(
    policy: str, kind: str, root: Path, run_dir: Path, seed: int, given: argparse.Namespace
) -> list[str]:
    arguments: dict[str, Any] = {
        "output_dir": run_dir, "policy.device": given.device, "policy.push_to_hub": "false", "wandb.enable": "false",
        "num_workers": given.workers, "eval_freq": 0, "dataset.repo_id": "local/benchmark", "dataset.root": root,
        "batch_size": given.batch_size, "steps": given.steps, "log_freq": WARM_UP, "save_freq": given.steps,
        "seed": seed, "policy.type": policy, "policy.optimizer_lr": LEARNING_RATE,
    }  # fmt: skip
    arguments |= {"dataset.video_backend": "pyav"} if kind == "video" else {}
    if policy == "act":
        arguments |= {"policy.optimizer_lr_backbone": LEARNING_RATE}
        arguments |= {} if kind == "low-dim" else {"policy.pretrained_backbone_weights": "null"}
        small = {f"policy.{ACT_NAMES[name]}": value for name, value in ACT.items()} | {"policy.n_action_steps": 16}
    else:
        # 15 actions executed, so that lerobot leaves out no frame at an episode's end
        arguments |= {"policy.n_action_steps": 15, "policy.drop_n_last_frames": 0}
        arguments |= {"policy.scheduler_warmup_steps": given.steps // 10}
        small = {"policy.down_dims": UNET["down_dims"], "policy.diffusion_step_embed_dim": UNET["step_dim"]}
        small |= {"policy.num_train_timesteps": 20}
    arguments |= small if given.small else {}
    return [f"--{name}={value}" for name, value in arguments.items()]


def run(program: str, arguments: list[str], result: Path, precision: str) -> dict[str, Any]:
    """The marks of one process."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(HERE.parent.parent),
        "ACCELERATE_MIXED_PRECISION": "bf16" if precision == "bf16" else "no",
    }  # fmt: skip
    command = [sys.executable, str(HERE / "peer" / f"{program}.py"), str(result), *arguments]
    began = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    marks = json.loads(result.read_text())
    return {**marks, "first_s": marks["first_end"] - began}


def compare(policy: str, kind: str, root: Path, folder: Path, given: argparse.Namespace) -> list[dict[str, float]]:
    """One row per round; who begins changes."""
    rows = []
    for number in range(given.rounds):
        found: dict[str, dict] = {}
        for program in ("our_program", "lerobot_program")[:: 1 if number % 2 else -1]:
            run_dir, result = folder / program, folder / "result.json"
            if program == "our_program":
                config = folder / "config.json"
                config.write_text(json.dumps(our_config(policy, kind, root, run_dir, number, given)))
                arguments = [str(config)]
            else:
                arguments = their_arguments(policy, kind, root, run_dir, number, given)
            found[program] = run(program, arguments, result, given.precision)
            shutil.rmtree(run_dir)
        ours, theirs = found["our_program"], found["lerobot_program"]
        clock = CLOCKS.index(given.clock)
        mean_s = {
            name: statistics.fmean(one[clock] for one in marks["seconds"][WARM_UP - 1 :])
            for name, marks in found.items()
        }
        blocks = [one[clock] for one in ours["bound"]]
        bound_s = statistics.fmean(blocks[1:] or blocks)  # the first one warms up
        rows.append(
            {
                "ours/s": given.batch_size / mean_s["our_program"],
                "lerobot/s": given.batch_size / mean_s["lerobot_program"],
                "ratio": mean_s["lerobot_program"] / mean_s["our_program"],
                "of the bound": bound_s / mean_s["our_program"],
                "ours first, s": ours["first_s"],
                "lerobot first, s": theirs["first_s"],
                "ours MB": ours["peak_mb"],
                "lerobot MB": theirs["peak_mb"],
                "ours loss": ours["loss"],
                "lerobot loss": theirs["loss"],
            }
        )
        if given.verbose:
            row = "  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items())
            print(f"{policy} {kind} {number}: {row}  {ours['phases']}", file=sys.stderr, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=200, help="updates of a run, a multiple of 20 [200]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: for a busy CPU, with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--batch-size", type=int, help="[8 on CPU, 64 on CUDA]")
    parser.add_argument("--full-size", action="store_true", help="lerobot's default sizes on a CPU, too")
    parser.add_argument("--workers", type=int, help="that read data, in both programs [0 on CPU, 4 on CUDA]")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both programs")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--frames", type=int, default=100, help="of each episode")
    parser.add_argument("--image-size", type=int, default=96, help="height and width")
    parser.add_argument("--verbose", action="store_true", help="each round, and the phases of our update")
    given = parser.parse_args(arguments)
    on_cpu = given.device == "cpu"
    given.small = on_cpu and not given.full_size
    given.batch_size = given.batch_size or (8 if on_cpu else 64)
    given.workers = (0 if on_cpu else 4) if given.workers is None else given.workers
    if given.steps < 2 * WARM_UP or given.steps % WARM_UP:
        parser.error("--steps is a multiple of 20, 40 at least")
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in given.data:
            record(folder / kind, kind, given.episodes, given.frames, given.image_size)
        for policy in given.policies:
            for kind in given.data:
                rounds = compare(policy, kind, folder / kind, folder, given)
                rows[policy, kind] = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print_table(rows, given)


def print_table(rows: dict[tuple[str, str], dict[str, float]], given: argparse.Namespace) -> None:
    load = os.getloadavg()[1]
    print(
        f"batch {given.batch_size}, {given.steps} updates, {given.precision}, {given.workers} data workers, "
        f"{given.device}, {os.cpu_count()} cores, load {load:.1f}, {given.clock} time, medians of {given.rounds} rounds"
    )
    print(
        "| | samples/s: ours | lerobot | ratio | of the bound | first update, s: ours | lerobot | MB: ours | lerobot |",
        end="",
    )
    print(" loss: ours | lerobot |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for (policy, kind), row in rows.items():
        cells = ["{:,.0f}", "{:,.0f}", "{:.2f}", "{:.1%}", "{:.1f}", "{:.1f}", "{:,.0f}", "{:,.0f}", "{:.3f}", "{:.3f}"]
        shown = " | ".join(cell.format(value) for cell, value in zip(cells, row.values(), strict=True))
        print(f"| {policy}, {kind} | {shown} |")


if __name__ == "__main__":
    main()
