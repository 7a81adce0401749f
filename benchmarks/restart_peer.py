"""The training that torchrun and Ray Train restart, for `recovery.py` and `warm_start.py`: the gpt-tiny model under DDP, gloo, two workers.

    torchrun ... restart_peer.py FOLDER INTERVAL        one run of it
    python restart_peer.py ray FOLDER                   drives a Ray cluster of its own; each line of input, `INTERVAL FOLDER`, is a run

Each rank appends `step time pid` to `FOLDER/steps-<rank>` after every step. Every `INTERVAL` steps rank 0 writes model and optimizer, the
usual way: torch.save and a rename; a restart loads the newest.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

STEPS = 100_000  # until it is ended
BATCH, LENGTH, VOCABULARY = 12, 128, 1024  # a rank's share of `workload=gpt`


def train(folder: Path, interval: int) -> None:
    """In a process group that is there."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    rank = dist.get_rank()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    first, newest = 1, folder / "checkpoint.pt"
    if newest.exists():
        state = torch.load(newest)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"] + 1
    parallel = DistributedDataParallel(model)
    with (folder / f"steps-{rank}").open("a", buffering=1) as told:
        for step in range(first, STEPS):
            tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(step * 2 + rank))
            loss = parallel(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            told.write(f"{step} {time.time()} {os.getpid()}\n")
            if rank == 0 and step % interval == 0:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, f"{newest}.new")
                Path(f"{newest}.new").replace(newest)


def as_worker(config: dict[str, Any]) -> None:
    """Of Ray Train, which has made the process group."""
    train(Path(config["folder"]), config["interval"])


def drive_ray(folder: Path) -> None:
    """Start a cluster, say `ready`, then fit one trainer per line until the input ends."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder))
    print("ready", flush=True)
    for line in sys.stdin:
        interval, run = line.split()
        trainer = TorchTrainer(
            as_worker, train_loop_config={"folder": run, "interval": int(interval)}, torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name=Path(run).name, storage_path=f"{run}-ray", failure_config=FailureConfig(max_failures=-1)),
        )  # fmt: skip
        trainer.fit()


if __name__ == "__main__":
    if sys.argv[1] == "ray":
        drive_ray(Path(sys.argv[2]))
    else:
        import torch.distributed

        torch.distributed.init_process_group("gloo")
        train(Path(sys.argv[1]), int(sys.argv[2]))
