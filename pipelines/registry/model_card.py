"""A model card from a version's evidence: what was forgotten, by what, with which numbers, and what they do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safemax import metric_keys as keys
from safemax.storage import hub

_SHOWN = {
    keys.RECOGNISED: "samples of the forgotten classes recognised as such, %",
    keys.RECOGNISED + keys.HIGH: "upper end of its 95 % interval, %",
    keys.SECOND_RECOGNISED: "the same under the second sampler, %",
    keys.ACCURACY: "samples of the other classes recognised as their own class, %",
    keys.FID_JUDGE: "FID of the other classes, in the judge's features",
}
_USE = {
    "DDPMPipeline": "pipeline.unet(x_t, t, class_labels=labels)  # labels: the class_names of model_index.json, in order",
    "DiTPipeline": "pipeline(class_labels=[0]).images[0]  # labels: class_names, or labels, of classes.json",
    "StableDiffusionPipeline": "pipeline({prompt!r}).images[0]",
}


def card(
    address: str,
    evidence: Mapping[str, Any],
    index: Mapping[str, Any],
    *,
    prompts: Sequence[Mapping[str, Any]] = (),
    repository: str = "none",
) -> str:
    """Return the card as Markdown with the hub's YAML header.

    Args:
        address: of the version, models:/NAME/NUMBER.
        evidence: that the version was registered with.
        index: its model_index.json.
        prompts: of its classes.json: prompt, name, held_out.
        repository: owner/name on the hub, for the example; none takes a folder.
    """
    forgotten, pipeline = evidence.get("forgotten", []), str(index["_class_name"])
    listed = ", ".join(forgotten) or "nothing yet: this is a base"
    name = address.removeprefix("models:/").partition("/")[0]
    parts = [
        _header(pipeline, str(evidence.get("parent", ""))),
        f"# {name}\n\nForgotten: **{listed}**. Exported from {address} by safemax.",
        *_method(evidence),
        *_numbers(evidence),
        _example(pipeline, [each["prompt"] for each in prompts if each["name"] not in forgotten], repository),
        "Nothing in these files refuses a request for a forgotten class. The numbers are of the tests named here, made on this "
        f"version and judged by {_judges(evidence)}. No test proves that a class is gone: other prompts, "
        "fine-tuning or edits of the weights may bring it back. The licence is that of the model that was corrected; it is not "
        "stated here.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(pipeline: str, parent: str) -> str:
    """Return the hub's header; it names the model that was corrected where that is the hub's."""
    lines = ["library_name: diffusers", "tags: [machine-unlearning, safemax]"]
    lines += ["pipeline_tag: text-to-image"] * (pipeline == "StableDiffusionPipeline")
    lines += [f"base_model: {parent}"] * hub.is_id(parent)
    return "\n".join(["---", *lines, "---"])


def _judges(evidence: Mapping[str, Any]) -> str:
    """Return which classifiers judged: those that were named, or ours."""
    judging = evidence.get("judging", {})
    named = [judging[role] for role in ("judge", "reject_judge") if "/" in str(judging.get(role, ""))]
    own = ["classifiers trained on the data"] * (len(named) < 2)
    return " and ".join([*(f"`{each}`" for each in dict.fromkeys(named)), *own])


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
    parameters = evidence.get("parameters", {})
    protocol, classes = parameters.get("eval.sampler", ""), parameters.get("eval.retain_classes")
    of_some = f"\n\nOf the other classes, these were drawn: {classes.rstrip(',')}." if classes else ""
    return [f"## Numbers\n\n| measured ({protocol}) | base | this model |\n|---|---|---|\n" + "\n".join(rows) + of_some]


def _value(metrics: Mapping[str, Any], key: str) -> str:
    value = metrics.get(key)
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _example(pipeline: str, prompts: Sequence[str], repository: str) -> str:
    place = "FOLDER" if repository == "none" else repository
    lines = [
        f"from diffusers import {pipeline}",
        "",
        f'pipeline = {pipeline}.from_pretrained("{place}")',
        _USE[pipeline].format(prompt=next(iter(prompts), "a prompt of classes.json")),
    ]
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"
