"""The Hub's check of the metadata at the head of a model card."""

import re
from collections.abc import Callable
from typing import Any

import yaml

Check = Callable[[str, Any], list[str]]
"""Errors of the value that is under a name."""

LICENSE_NAMES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
"""
LICENSES = LICENSE_NAMES.split()
TASK_NAMES = """
    image-classification image-feature-extraction image-segmentation image-to-image image-to-text image-to-video
    image-text-to-text image-to-3d depth-estimation mask-generation keypoint-detection object-detection
    unconditional-image-generation video-classification visual-question-answering visual-document-retrieval
    zero-shot-image-classification zero-shot-object-detection feature-extraction text-classification fill-mask
    token-classification question-answering summarization translation text-generation text-to-image sentence-similarity
    audio-classification automatic-speech-recognition tabular-classification reinforcement-learning robotics other
"""
TASKS = TASK_NAMES.split()
RELATIONS = ("adapter", "merge", "quantized", "finetune")
HEAD = re.compile(r"^\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))(?:[\w.-]+/)?[\w.-]{1,96}")
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


class Loader(yaml.SafeLoader):
    """Like the Hub's, it takes no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"duplicated mapping key {key}")
        return super().construct_mapping(node, deep)


def metadata_of(content: str) -> Any:
    """What the YAML at the head of a card says; None without a head."""
    head = HEAD.match(content)
    return head and yaml.load(head[1], Loader)


def check_card(content: str) -> dict[str, list[str]]:
    """What the Hub would say of a README.md: `errors`, for which it refuses it, and `warnings`."""
    try:
        metadata = metadata_of(content)
    except yaml.YAMLError as error:
        return {"errors": [f"Invalid YAML: {error}"], "warnings": []}
    if not metadata:
        return {"errors": [], "warnings": ["empty or missing yaml metadata in repo card"]}
    if not isinstance(metadata, dict):
        return {"errors": ["metadata must be a mapping"], "warnings": []}
    checks = {
        "license": check_license,
        "language": check_language,
        "tags": check_tags,
        "datasets": check_texts,
        "metrics": check_texts,
        "pipeline_tag": check_text,
        "library_name": check_text,
        "base_model": check_repositories,
        "base_model_relation": check_relation,
        "model-index": check_index,
    }
    errors = [error for name, check in checks.items() if name in metadata for error in check(name, metadata[name])]
    task = metadata.get("pipeline_tag", TASKS[0])
    warnings = [] if task in TASKS else [f'The pipeline tag "{task}" is not in the official list']
    return {"errors": errors, "warnings": warnings}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_text(name: str, value: Any) -> list[str]:
    return [] if isinstance(value, str) and value else [f'"{name}" must be a string']


def check_texts(name: str, value: Any) -> list[str]:
    """One string or a list of them."""
    return [error for number, item in enumerate(as_list(value)) for error in check_text(f"{name}[{number}]", item)]


def check_tags(name: str, value: Any) -> list[str]:
    return check_texts(name, value) if isinstance(value, list) else [f'"{name}" must be an array']


def check_language(name: str, value: Any) -> list[str]:
    if all(isinstance(item, str) and LANGUAGE.fullmatch(item) for item in as_list(value)):
        return []
    return [f'"{name}" must be an ISO 639-1, 639-2 or 639-3 code, or a special value like "code" or "multilingual"']


def check_license(name: str, value: Any) -> list[str]:
    if value and all(item in LICENSES for item in as_list(value)):
        return []
    return [f'"{name}" must be one of [{", ".join(LICENSES)}, array]']


def check_repositories(name: str, value: Any) -> list[str]:
    """Paths of a disk and other names that no repository can have are refused."""
    message = f'"{name}" with value "{value}" is not valid. Use a model id from https://hf.co/models.'
    is_valid = all(isinstance(item, str) and REPOSITORY.fullmatch(item) for item in as_list(value))
    return [] if value and is_valid else [message]


def check_relation(name: str, value: Any) -> list[str]:
    return [] if value in RELATIONS else [f'"{name}" must be one of [{", ".join(RELATIONS)}]']


def check_each(place: str, value: Any, check: Check) -> list[str]:
    if not isinstance(value, list) or not value:
        return [f'"{place}" must be an array of at least one item']
    return [error for number, item in enumerate(value) for error in check(f"{place}[{number}]", item)]


def check_index(name: str, value: Any) -> list[str]:
    return check_each(name, value, check_model)


def check_model(place: str, model: Any) -> list[str]:
    return [*required(place, model, "name"), *check_each(f"{place}.results", at(model, "results"), check_result)]


def check_result(place: str, result: Any) -> list[str]:
    """A result names its task and data set, and has at least one metric."""
    named = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
    errors = [error for names in named for error in required(place, result, *names)]
    return [*errors, *check_each(f"{place}.metrics", at(result, "metrics"), check_metric)]


def check_metric(place: str, metric: Any) -> list[str]:
    missing = [f'"{place}.value" is required'] if at(metric, "value") is None else []
    return [*required(place, metric, "type"), *missing]


def at(facts: Any, *names: str) -> Any:
    """What the names lead to, if anything."""
    for name in names:
        facts = facts.get(name) if isinstance(facts, dict) else None
    return facts


def required(place: str, facts: Any, *names: str) -> list[str]:
    """An error unless the names lead to a text."""
    name, value = ".".join((place, *names)), at(facts, *names)
    return [f'"{name}" is required'] if value is None else check_text(name, value)
