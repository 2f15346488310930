"""CEMA in 100 lines: the whole algorithm on the embedded digits, for reading. Chen et al., ICLR 2024.

python examples/cema_in_100_lines.py [CORRUPTION [SEVERITY]]
# prints its accuracy beside the product's row, with statistics that come with updates
"""

import copy
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

from cema.data.dataset import open_dataset
from cema.methods.base import MethodContext
from cema.methods.registry import make_adapter
from cema.models.registry import resolve

ALPHA, BETA, FRESH, REPLAYED, REPLAY_FROM, BATCH = 3.0, 3.0, 32, 96, 256, 64
OF_UPDATES = {"statistics": {"source": "update"}, "change_limit": 0.0}
MAX, MIN = 0.4 * math.log(10), 0.02 * math.log(10)  # E_max^0 and E_min, in nats


class Renorm(nn.Module):
    """Batch renormalisation: the value of running statistics, the gradient of batch statistics."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.mode = norm, "running"
        self.norm.momentum = 1.0  # the first batch of uploads replaces the source statistics

    def forward(self, x):
        norm = self.norm
        if self.mode == "observe":  # every layer uses this batch's own statistics while they are read
            y = F.batch_norm(
                x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.momentum
            )
            norm.momentum = FRESH / 96  # then an average over some 96 uploads
            return y
        if self.mode == "running":
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        var, mean = (s.detach() for s in torch.var_mean(x, (0, 2, 3), correction=0))
        scale = ((var + norm.eps) / (norm.running_var + norm.eps)).sqrt()[:, None, None]
        shift = ((mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt())[:, None, None]
        y = F.batch_norm(x, None, None, None, None, True) * scale + shift
        return y * norm.weight[:, None, None] + norm.bias[:, None, None]


class Adapted:
    """A copy of a model that learns the affine parameters of its normalisation layers."""

    def __init__(self, model, lr):
        self.net = copy.deepcopy(model.module).requires_grad_(False)
        for parent in list(self.net.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, nn.BatchNorm2d):
                    parent.add_module(name, Renorm(layer.requires_grad_(True)))
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr, momentum=0.9)

    def __call__(self, x, mode="running"):
        for layer in self.net.modules():
            if isinstance(layer, Renorm):
                layer.mode = mode
        with torch.set_grad_enabled(mode == "train"):
            return self.net(x)

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def entropy(logits):
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def weight(e):  # H(x)
    return torch.exp(MAX - e).detach()


def cema(edge_model, foundation_model, inputs, labels):
    edge, foundation = Adapted(edge_model, 2.5e-3), Adapted(foundation_model, 2.5e-4)
    serving, queue, buffer = copy.deepcopy(edge), [], []
    e_max, total, correct, uploads = MAX, 0.0, 0, 0
    for t, (x, y) in enumerate(zip(inputs.split(BATCH), labels.split(BATCH), strict=True), 1):
        # The edge: predict, and select E_min < E(x) < E_max^t; the upper threshold follows the stream's mean entropy.
        logits = serving(x)
        correct += int((logits.argmax(1) == y).sum())
        e, before = entropy(logits), total / max(t - 1, 1)
        total += float(e.mean())
        e_max *= (total / t) / before if t > 1 else 1.0
        chosen = x[
            (e > MIN) & (e < max(e_max, total / t))
        ]  # never below the mean: ours, see docs/algorithm.md
        queue, uploads = [*queue, *chosen], uploads + len(chosen)
        # The cloud: a step on every full batch of uploads.
        while len(queue) >= FRESH:
            fresh, queue = torch.stack(queue[:FRESH]), queue[FRESH:]
            for model in (foundation, edge):
                model(fresh, "observe")
            e = entropy(foundation(fresh, "train"))
            foundation.descend((weight(e) * e).mean())
            drawn = torch.randperm(len(buffer))[: REPLAYED if len(buffer) >= REPLAY_FROM else 0].tolist()
            both = torch.stack([*fresh, *(buffer[i] for i in drawn)])
            teacher, pupil = foundation(both), edge(both, "train")
            p, log_p, log_q = pupil.softmax(1), pupil.log_softmax(1), teacher.log_softmax(1)
            kl, ce = (p * (log_p - log_q)).sum(1), F.cross_entropy(pupil, teacher.argmax(1), reduction="none")
            edge.descend((weight(entropy(teacher)) * (ALPHA * kl + BETA * ce + entropy(pupil))).mean())
            buffer += list(fresh)
            serving = copy.deepcopy(edge)  # the update arrives before the next batch
    return correct / len(labels), uploads / len(labels)


if __name__ == "__main__":
    corruption, severity = (*sys.argv[1:], "fog", "5")[0], int((*sys.argv[2:], "5")[0])
    torch.manual_seed(0)
    edge, foundation = resolve("digits-cnn"), resolve("digits-cnn-foundation")
    data = open_dataset("digits", cache=None).corrupted(corruption, severity)
    inputs, labels = torch.from_numpy(edge.preprocessing(data.images)), torch.from_numpy(data.labels)
    accuracy, share = cema(edge, foundation, inputs, labels)
    print(f"100 lines    accuracy {accuracy:.1%}, uploaded {share:.1%}")
    row, correct, uploads = make_adapter("cema", edge, OF_UPDATES, context=MethodContext(foundation)), 0, 0
    for i in range(0, len(labels), BATCH):
        result = row.step(data.images[i : i + BATCH])
        correct += int((result.logits.argmax(1) == data.labels[i : i + BATCH]).sum())
        uploads += result.uploads
    print(f"product      accuracy {correct / len(labels):.1%}, uploaded {uploads / len(labels):.1%}")
