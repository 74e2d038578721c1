"""Merging: checkpoints of one base are folded into one, tensor by tensor.

rule.py        what a rule is: it folds one more task vector into what was merged before
rules/         the rules, one file each
treatment.py   what a treatment of the merged task vector is
after/         the treatments, one file each
registry.py    rules and treatments, found by their names
layers.py      how deep a tensor stands in a model
fold.py        the fold over one tensor, in pieces
magnitude.py   the k-th largest magnitude of a tensor that is read in pieces
draws.py       random numbers that depend only on a seed and a position
checkpoint.py  the tensors of a checkpoint's safetensors files
adapter.py     a LoRA adapter as the tensors that it adds to its base
statistics.py  what some rules need to know of a checkpoint beside its weights
presets.py     recipes of merging under one name
pack.py        checkpoints stored as what they have other than their base
factors.py     LoRA adapters merged to a LoRA adapter
preflight.py   whether checkpoints can be merged, before anything is written
observed.py    what is measured of a checkpoint while it is folded
survey.py      one pass over all inputs: norms, cosines, values that are not finite
streamed.py    many checkpoints merged into one folder, within a limit of memory
output.py      the files of the merged weights, written in place and journalled
"""
