"""A slow reference of Recurrent-KIF."""

import torch
from torch import nn

from perdure.train.memory import Memory
from train.engine import STRICT, engine, tiny_base, tokenized


SEQUENTIAL = {"train_sampling_strategy": "sequential", "adam_epsilon": 1e-8}


class Reference:
    """The algorithm as one writes it down first: dictionaries, loops, torch.quantile."""

    def __init__(self, kind, steps, settings, work):
        self.kind, self.steps, self.settings = kind, steps, settings
        self.base = tiny_base(kind)
        named = self.base.model.named_parameters()
        self.parameters = {n: p for n, p in named if p.requires_grad}
        self.collate = engine(self.base, "sequential", work).collate
        self.memory, self.drawn = Memory({"animal": tokenized(self.base, "animal", 6)}, 5), 0
        self.inner, self.outer = (
            torch.optim.AdamW(self.parameters.values(), STRICT["learning_rate"], weight_decay=decay)
            for decay in (STRICT["weight_decay"], 0)
        )
        self.inner_importance, self.outer_importance = (
            Importance(self.parameters, settings, settings[beta])
            for beta in ("beta_inner", "beta_outer")
        )

    def learn(self, rows):
        """Rounds of inner steps, each with outer steps and a fusion; the weights at the end."""
        start, rates, first = self.snapshot(), [], True
        self.begin = start
        for step in range(self.steps):
            rates.append(self.inner_step(step, rows[4 * step : 4 * step + 4]))
            if (step + 1) % self.settings["inner_steps"] and step + 1 < self.steps:
                continue
            reached = self.snapshot()
            self.outer.param_groups[0]["lr"] = self.outer_rate(rates)
            for _ in range(self.settings["outer_steps"]):
                self.outer_step(observing=self.settings.get("refresh", True) or first)
            self.fuse(start, reached)
            self.inner_importance.maps = {}
            start, rates, first = self.snapshot(), [], False
        return self.snapshot()

    def snapshot(self):
        return {n: p.detach().clone() for n, p in self.parameters.items()}

    def inner_step(self, step, rows):
        """On rows of the task, at a linearly falling rate, which it gives."""
        rate = STRICT["learning_rate"] * (1 - step / self.steps)
        self.inner.param_groups[0]["lr"] = rate
        self.backward(rows)
        self.inner_importance.observe()
        self.clipped_step(self.inner)
        return rate

    def outer_rate(self, rates):
        """Constant, or the mean of those of the round's inner steps, in proportion."""
        base = STRICT["learning_rate"]
        rate = self.settings["outer_learning_rate"] or base
        if self.settings["outer_schedule"] == "constant":
            return rate
        return rate / base * sum(rates) / len(rates)

    def outer_step(self, observing):
        """On the next rows of memory, by default as many as in an inner step."""
        count = self.settings["outer_batch_size"] or round(4 * self.settings["outer_ratio"])
        self.backward(self.memory.draw(self.drawn, count))
        self.drawn += count
        if observing:
            self.outer_importance.observe()
        self.clipped_step(self.outer)

    def backward(self, rows):
        batch, model = self.collate(rows), self.base.model
        labels = batch.pop("labels")
        if self.kind == "seq2seq":
            shifted = self.base.peft.prepare_decoder_input_ids_from_labels(labels)
            batch["decoder_input_ids"] = shifted
        logits = model(**batch).logits
        if self.kind == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()

    def clipped_step(self, optimizer):
        nn.utils.clip_grad_norm_(self.parameters.values(), STRICT["max_grad_norm"])
        optimizer.step()
        self.base.model.zero_grad()

    @torch.no_grad()
    def fuse(self, start, reached):
        """The round's start, with shares of what the inner and the outer steps added to it."""
        inner_masks, outer_masks = self.inner_importance.masks(), self.outer_importance.masks()
        table = self.settings["fusion"]
        for n, p in self.parameters.items():
            inner_change, outer_change = reached[n] - start[n], p - reached[n]
            if self.settings["agree"]:
                against = inner_change.sign() * outer_change.sign() == -1
                inner_masks[n] = inner_masks[n] & ~(outer_masks[n] & against)
            if "soft" in table:
                w = self.soft_share(n, table["soft"]).float()
                p.copy_(start[n] + (w * inner_change + (1 - w) * outer_change))
                continue
            fused = torch.empty_like(p)
            for in_inner, in_outer, case in (
                (True, True, "both"),
                (True, False, "inner"),
                (False, True, "outer"),
                (False, False, "neither"),
            ):
                w_in, w_out = table[case]
                where = (inner_masks[n] == in_inner) & (outer_masks[n] == in_outer)
                back = case == "outer" and self.settings["restore"] == "stage"
                from_where = self.begin[n] if back else start[n]
                moved = from_where + w_in * inner_change + w_out * outer_change
                fused[where] = moved[where]
            p.copy_(fused)

    def soft_share(self, n, temperature):
        """Of the inner steps' change: the softmax of both scores, each in its range."""
        inner, outer = self.inner_importance.in_range(n), self.outer_importance.in_range(n)
        a, b = (inner / temperature).exp(), (outer / temperature).exp()
        return a / (a + b)


class Importance:
    """The reference's running sensitivity and uncertainty of every weight, and their scores."""

    def __init__(self, parameters, settings, beta):
        self.parameters, self.settings, self.beta = parameters, settings, beta
        self.maps = {}

    def observe(self):
        beta, beta_uncertainty = self.beta, self.settings["beta_uncertainty"]
        for n, p in self.parameters.items():
            sensitivity = (p.detach() * p.grad).abs()
            smooth, deviation = self.maps.get(n, (torch.zeros_like(p), torch.zeros_like(p)))
            smooth = beta * smooth + (1 - beta) * sensitivity
            deviation = (
                beta_uncertainty * deviation + (1 - beta_uncertainty) * (sensitivity - smooth).abs()
            )
            self.maps[n] = (smooth.detach(), deviation.detach())

    def scores(self):
        alone = self.settings["score"] == "sensitivity"
        return {n: (s if alone else s * u).double() for n, (s, u) in self.maps.items()}

    def all_scores(self):
        return torch.cat([s.flatten() for s in self.scores().values()])

    def masks(self):
        """Of every tensor, which weights have a score above the quantile of all, or of its own."""
        if self.settings["quantile_over"] == "parameter":
            q = self.settings["quantile"]
            return {n: s > torch.quantile(s, q) for n, s in self.scores().items()}
        threshold = torch.quantile(self.all_scores(), self.settings["quantile"])
        return {n: s > threshold for n, s in self.scores().items()}

    def in_range(self, n):
        low, high = self.all_scores().aminmax()
        return (self.scores()[n] - low) / (high - low)
