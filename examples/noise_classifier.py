"""A diffusion model as a classifier of noise: how noisy is this digit?"""

# %% the committed model and real digits
import torch

from ctd_engine import NoiseClassifier
from ctd_engine.demo import demo_checkpoint
from ctd_engine.training.data import load_data

digits, data = demo_checkpoint(), load_data("digits")
classifier = NoiseClassifier(
    digits.model, digits.schedule, prediction=digits.prediction, num_draws=64
)
generator = torch.Generator().manual_seed(0)
x, label = data.x[:6], data.labels[:6]

# %% noise of log-SNR 2 on three of them: variance preserving, as the classifier's candidates are
logsnr = torch.tensor(2.0)
noise = torch.randn(3, *x.shape[1:], generator=generator)
z = x.clone()
z[3:] = torch.sigmoid(logsnr).sqrt() * x[3:] + torch.sigmoid(-logsnr).sqrt() * noise

# %% log p_zeta(z) - log p(z): negative for clean digits, positive for noisy ones
ratio = classifier.log_ratio(z, 2.0, generator=generator, label=label)
for index in range(6):
    value, error = float(ratio.value[index]), float(ratio.standard_error[index])
    print(f"{'clean' if index < 3 else 'noisy'}: log ratio {value:7.1f} +- {error:.1f}")

# %% which of some levels is it?
prediction = classifier.predict(z, [0.0, 2.0, 4.0], generator=generator, label=label)
print("log-SNR, inf for clean:", prediction.logsnr.tolist())
print("probability of that:", [round(float(p), 3) for p in prediction.posterior.max(1).values])
