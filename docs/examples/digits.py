"""A program for torchrun: trains a network on handwritten digits, saves itself, and goes on where it was.

torchrun --nproc-per-node 2 digits.py --epochs 5
syncbn train digits.py --set resources.workers=2 -- --epochs 5
"""

import argparse
import os
import signal
from pathlib import Path

import mlflow
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sync_bn import convert_sync_batchnorm

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--lr", type=float, default=0.1)
options = parser.parse_args()

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
torch.manual_seed(0)

pixels, digits = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
data = TensorDataset(pixels.float() / 16, digits)
sampler: DistributedSampler[int] = DistributedSampler(data)
loader = DataLoader(data, batch_size=64 // dist.get_world_size(), sampler=sampler)
network = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
model = DistributedDataParallel(convert_sync_batchnorm(network).to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)

# In a job this is the same folder in every attempt. Under torchrun the file is in the working directory.
checkpoint = Path(os.environ.get("SYNCBN_CHECKPOINT_DIR", ".")) / "digits.pt"
first = 0
if checkpoint.exists():
    saved = torch.load(checkpoint, map_location=device)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["epoch"] + 1

# A job that is paused, resized or cancelled gets SIGTERM, and has some seconds to save itself.
asked_to_stop = torch.zeros(1, device=device)
signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.fill_(1))

for epoch in range(first, options.epochs):
    sampler.set_epoch(epoch)
    total = torch.zeros(1, device=device)
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    dist.all_reduce(total)
    if rank == 0:
        mean = total.item() / len(loader) / dist.get_world_size()
        print(f"epoch {epoch}: loss {mean:.4f}", flush=True)
        mlflow.log_metric("train_loss", mean, step=epoch)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
    # The signal does not reach all ranks in the same epoch: they stop together once one of them has it.
    stop = asked_to_stop.clone()
    dist.all_reduce(stop, dist.ReduceOp.MAX)
    if stop.item():
        break

dist.destroy_process_group()
