"""Train a small U-Net on 8x8 digits with the contrastive loss, in a loop of one's own."""

# %% settings: --steps 9000 makes digits that are worth looking at
import argparse

import torch

from ctd_engine import ContrastiveDiffusionLoss, ParallelSampler, schedules
from ctd_engine.training.data import load_data
from ctd_engine.training.unet import SmallUNet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--out", help="write the samples to this .png")
arguments, _ = parser.parse_known_args()

# %% data, model and loss; DenoisingLoss(schedule) in its place is the whole difference
torch.manual_seed(0)
data = load_data("digits")
num_classes = data.num_classes
# label 10 stands for "no condition"
model = SmallUNet(shape=(1, 8, 8), width=arguments.width, num_classes=num_classes)
schedule = schedules.linear_beta()
loss_fn = ContrastiveDiffusionLoss(schedule)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

# %% the loop
for step in range(1, arguments.steps + 1):
    rows = torch.randint(len(data.x), (64,))
    x, label = data.x[rows], data.labels[rows].clone()
    # a tenth without its label, for guidance
    label[torch.rand(64) < 0.1] = num_classes
    optimizer.zero_grad()
    loss = loss_fn(model, x, label=label)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step in (1, arguments.steps) or step % 100 == 0:
        told = ", ".join(f"{name} {float(value):.3f}" for name, value in loss_fn.last.items())
        print(f"step {step}: {told}")

# %% samples, in parallel and guided
sampler = ParallelSampler(
    model.eval(),
    shape=(1, 8, 8),
    schedule=schedule,
    num_steps=100,
    window_size=32,
    clip_x0=1.0,
    null_cond={"label": torch.tensor([num_classes])},
)
result = sampler.sample(10, seed=0, cond={"label": torch.arange(10)}, guidance_scale=2.0)
print(f"{result.stats.rounds} rounds instead of 100")
if arguments.out:
    from pathlib import Path

    from ctd_engine.plots import save_images

    save_images(Path(arguments.out), result.samples)
