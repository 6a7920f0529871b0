"""A model card from a version's evidence: what was forgotten, by what, with which numbers, and what they do not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safemax import metric_keys as keys

_SHOWN = {
    keys.RECOGNISED: "samples of the forgotten classes recognised as such, %",
    keys.RECOGNISED + keys.HIGH: "upper end of its 95 % interval, %",
    keys.SECOND_RECOGNISED: "the same under the second sampler, %",
    keys.ACCURACY: "samples of the other classes recognised as such, %",
    keys.FID_JUDGE: "FID of the other classes, in the judge's features",
}
_USE = {
    "DDPMPipeline": "pipeline.unet(x_t, t, class_labels=labels)  # labels: the class_names of model_index.json, in order",
    "DiTPipeline": "pipeline(class_labels=[0]).images[0]  # labels: class_names, or labels, of classes.json",
    "StableDiffusionPipeline": 'pipeline("a prompt of classes.json").images[0]',
}


def card(address: str, evidence: Mapping[str, Any], index: Mapping[str, Any], *, repository: str = "none") -> str:
    """Return the card as Markdown with the hub's YAML header.

    Args:
        address: of the version, models:/NAME/NUMBER.
        evidence: that the version was registered with.
        index: its model_index.json.
        repository: owner/name on the hub, for the example; none takes a folder.
    """
    forgotten = ", ".join(evidence.get("forgotten", [])) or "nothing yet: this is a base"
    name = address.removeprefix("models:/").partition("/")[0]
    parts = [
        "---\nlibrary_name: diffusers\ntags: [machine-unlearning, safemax]\n---",
        f"# {name}\n\nForgotten: **{forgotten}**. Exported from {address} by safemax.",
        *_method(evidence),
        *_numbers(evidence),
        _example(str(index["_class_name"]), repository),
        "The numbers are those of the tests that made them, on this version, by classifiers trained on the data. No test proves "
        "that a class is gone: other prompts, fine-tuning or edits of the weights may bring it back. The licence is that of the "
        "model that was corrected; it is not stated here.",
    ]
    return "\n\n".join(parts) + "\n"


def _method(evidence: Mapping[str, Any]) -> list[str]:
    parameters = evidence.get("parameters", {})
    if "method.name" not in parameters:
        return []
    rows = [f"| `{key}` | {str(value).replace('|', '/')} |" for key, value in sorted(parameters.items())]
    return [
        f"## How\n\nMethod `{parameters['method.name']}`, from {evidence.get('parent', 'its base')}.",
        "<details><summary>All parameters</summary>\n\n| parameter | value |\n|---|---|\n"
        + "\n".join(rows)
        + "\n\n</details>",
    ]


def _numbers(evidence: Mapping[str, Any]) -> list[str]:
    after, before = evidence.get("metrics", {}), evidence.get("base_metrics", {})
    rows = [
        f"| {text} | {_value(before, key)} | {_value(after, key)} |" for key, text in _SHOWN.items() if key in after
    ]
    if not rows:
        return []
    protocol = evidence.get("parameters", {}).get("eval.sampler", "")
    return [f"## Numbers\n\n| measured ({protocol}) | base | this model |\n|---|---|---|\n" + "\n".join(rows)]


def _value(metrics: Mapping[str, Any], key: str) -> str:
    value = metrics.get(key)
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _example(pipeline: str, repository: str) -> str:
    place = "FOLDER" if repository == "none" else repository
    lines = [
        f"from diffusers import {pipeline}",
        "",
        f'pipeline = {pipeline}.from_pretrained("{place}")',
        _USE[pipeline],
    ]
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"
