"""Unconditional training with diffusers and accelerate: the usual script, with another loss.

    python examples/train_diffusers.py --data digits --out digits-ddpm
    accelerate launch examples/train_diffusers.py --data images/ --out images-ddpm

Everything is as in diffusers' own script (UNet2DModel, DDPMScheduler, EMAModel, accelerate, and a
DDPMPipeline at the end) but for the loss: `loss_fn(...)` stands where noise, timesteps, add_noise
and mse_loss would. `--loss denoising` gives the usual loss, to compare.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from ctd_engine import ContrastiveDiffusionLoss, DenoisingLoss, schedules
from ctd_engine.logsnr_distributions import alpha_from_data
from ctd_engine.plots import save_images
from ctd_engine.training.data import load_data

# diffusers' names for what a model returns
PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default="digits", help='"digits" (8x8), or a folder of images of one size')
    add("--out", type=Path, default=Path("ddpm"), help="folder for the pipeline and samples.png")
    add("--loss", choices=("contrastive", "denoising"), default="contrastive")
    add("--prediction-type", choices=tuple(PREDICTIONS), default="epsilon")
    add("--steps", type=int, default=300, help="optimizer steps")
    add("--batch-size", type=int, default=64, help="per process")
    add("--gradient-accumulation-steps", type=int, default=1)
    add("--mixed-precision", choices=("no", "fp16", "bf16"), default="no")
    add("--channels", type=int, default=32, help="of the U-Net at full resolution, times 1, 2")
    add("--lr", type=float, default=1e-3)
    add("--warmup", type=int, default=50, help="steps until the full learning rate")
    add("--ema-decay", type=float, default=0.999)
    add("--samples", type=int, default=16, help="images to draw at the end")
    add("--inference-steps", type=int, default=50, help="steps of the sampler for them")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def build_unet(shape: torch.Size, channels: int) -> UNet2DModel:
    return UNet2DModel(
        sample_size=tuple(shape[1:]),
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=1,
        block_out_channels=(channels, 2 * channels),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


def main() -> None:
    args = parse_args()
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
    )
    # every process draws its own noise
    set_seed(args.seed, device_specific=True)
    images = load_data(args.data).x
    loader = DataLoader(TensorDataset(images), args.batch_size, shuffle=True, drop_last=True)
    model = build_unet(images.shape[1:], args.channels)
    noise_scheduler = DDPMScheduler(prediction_type=args.prediction_type)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    lr_scheduler = get_scheduler(
        "cosine",
        optimizer,
        num_warmup_steps=args.warmup * accelerator.num_processes,
        num_training_steps=args.steps * accelerator.num_processes,
    )
    ema = EMAModel(model.parameters(), decay=args.ema_decay, use_ema_warmup=True)
    ema.to(accelerator.device)
    model, optimizer, loader, lr_scheduler = accelerator.prepare(
        model, optimizer, loader, lr_scheduler
    )
    if len(loader) == 0:
        raise SystemExit(
            f"--batch-size {args.batch_size} in each of {accelerator.num_processes} processes is "
            f"more than the {len(images)} images of {args.data}; lower it"
        )

    schedule = schedules.from_alphas_cumprod(noise_scheduler.alphas_cumprod)
    prediction = PREDICTIONS[args.prediction_type]
    loss_fn: DenoisingLoss | ContrastiveDiffusionLoss
    if args.loss == "contrastive":
        alpha = alpha_from_data(images)
        loss_fn = ContrastiveDiffusionLoss(schedule, prediction=prediction, alpha=alpha)
    else:
        loss_fn = DenoisingLoss(schedule, prediction=prediction)

    bar = tqdm(total=args.steps, disable=not accelerator.is_local_main_process)
    step = 0
    model.train()
    while step < args.steps:
        for (batch,) in loader:
            with accelerator.accumulate(model):
                # the one line: in place of noise, timesteps, add_noise and mse_loss
                loss = loss_fn(lambda x, t: model(x, t).sample, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            ema.step(model.parameters())
            step += 1
            bar.update(1)
            if step % 10 == 0 or step == args.steps:
                bar.set_postfix({name: f"{float(v):.3f}" for name, v in loss_fn.last.items()})
            if step == args.steps:
                break
    bar.close()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unet = accelerator.unwrap_model(model).eval()
        ema.copy_to(unet.parameters())
        pipeline = DDPMPipeline(unet, noise_scheduler)
        pipeline.save_pretrained(args.out)
        if args.samples > 0:
            generator = torch.Generator(accelerator.device).manual_seed(args.seed)
            pipeline.set_progress_bar_config(disable=True)
            drawn = pipeline(args.samples, generator, args.inference_steps, output_type="np").images
            save_images(args.out / "samples.png", torch.from_numpy(drawn).movedim(3, 1) * 2 - 1)
        print(f"saved {args.out}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
