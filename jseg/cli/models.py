"""List the models that MMSegmentation publishes weights of, search them, or show one.

    jseg models                                        all of them, best published mIoU first
    jseg models --like segformer-b0 --data ade20k      those that fit; case, hyphens and order of words do not count
    jseg models NAME                                   the card of one: origin, licences of weights and data, published
                                                       mIoU with its protocol, parameters, operations, speed
    jseg models NAME --markdown > CARD.md              the same as a page

A model builds here once jseg has every type that its config names. For those, parameters and operations are counted
(rule: `jseg flops --help`) at the size of a training picture. `jseg weights get NAME` fetches and converts one.
Nothing here needs a connection.
"""

from __future__ import annotations

import json

EXAMPLE = "jseg models --like segformer-b0 --data ade20k"
COUNTED_UNASKED = 12  # models of a list whose parameters and operations are counted without --sizes, up to 1 s each


def add_arguments(parser) -> None:
    """Options of `jseg models`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one model")
    parser.add_argument("--like", nargs="+", default=[], metavar="WORD",
                        help="words of method, backbone, dataset or size, for example deeplabv3+ r50")
    parser.add_argument("--data", nargs="+", default=[], metavar="WORD",
                        help="words of the dataset alone, for example voc")
    parser.add_argument("--sizes", action="store_true",
                        help="count parameters and operations of every model that builds here, "
                             f"not only in lists with up to {COUNTED_UNASKED} of them")
    parser.add_argument("--long", action="store_true", help="with config and address in the list")
    parser.add_argument("--markdown", action="store_true", help="print the card of NAME as a Markdown page")
    parser.add_argument("--json", action="store_true", help="all facts as JSON")


def run(args) -> int:
    """Print the list or the card."""
    from jseg.convert.model_index import read_models
    from jseg.convert.model_index_search import search_models
    from jseg.errors import ConvertError

    models = read_models()
    if args.markdown and (args.name is None or args.json):
        raise ConvertError("jseg models --markdown: goes with the name of one model, without --json")
    if args.name is not None:
        if args.like or args.data:
            raise ConvertError(f"jseg models {args.name}: a name stands alone; leave it out to search with --like "
                               "and --data")
        facts = gather_facts(named_model(args.name, models), count=True)
        if args.markdown:
            from jseg.convert.model_card import markdown_card
            print(markdown_card(facts), end="")
        else:
            print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else card(facts))
        return 0
    found = search_models(models, args.like, args.data)
    built = sum(not model.missing_types() for model in found)
    rows = [gather_facts(model, count=args.sizes or built <= COUNTED_UNASKED) for model in found]
    if args.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    uncounted = "; --sizes counts their parameters and operations" * (built > COUNTED_UNASKED and not args.sizes)
    print(table(rows, args.long))
    print(f"\n{len(rows)} of {len(models)} models, {built} of them build here{uncounted}. "
          "`jseg models NAME` shows one with its address")
    return 0


def named_model(name: str, models: dict):
    """The model of a name, or ConvertError with those that the words of the name fit."""
    from jseg.convert.model_index import find_model
    from jseg.convert.model_index_search import search_models
    from jseg.errors import ConvertError

    model = find_model(name, models)
    if model is not None:
        return model
    try:
        near = ", ".join(model.name for model in search_models(models, [name])[:3])
        hint = f"its words fit {near}; `jseg models --like {name}` shows all that fit"
    except ConvertError:
        hint = "`jseg models --like WORDS` searches, `jseg weights list` shows files from elsewhere too"
    raise ConvertError(f"no model of MMSegmentation is called {name!r}; {hint}")


def gather_facts(model, *, count: bool) -> dict:
    """What is known of one model, for JSON.

    Args:
        model: a `PublishedModel`.
        count: count parameters and operations; both are None where it does not build here, or without this.
    """
    from jseg.convert.model_card import SPEEDS, data_licence, protocol_text
    from jseg.convert.model_index import LICENCE

    missing = model.missing_types()
    parameters, operations, fault = measure_model(model) if count and not missing else (None, None, None)
    return {"name": model.name, "family": model.family, "architecture": list(model.architecture),
            "config": model.config, "dataset": model.dataset, "dataset_type": model.dataset_type,
            "crop": list(model.crop), "metrics": dict(model.metrics), "url": model.url,
            "hash_digits": model.hash_digits, "licence": LICENCE, "data_licence": data_licence(model.dataset),
            "protocol": protocol_text(model.metrics, model.dataset),
            "speed_ms": SPEEDS[model.name].milliseconds if model.name in SPEEDS else None,
            "missing_types": missing, "fault": fault,
            "parameters": parameters, "operations": operations}


def measure_model(model) -> tuple[int | None, int | None, str | None]:
    """(parameters, operations for one picture of the training size, why it does not build)."""
    from jseg.cli.flops import count_operations
    from jseg.errors import JsegError
    from jseg.layers import named_parameters
    from jseg.models import build_model

    try:
        built = build_model(model.jseg_config())
    except JsegError as error:
        return None, None, str(error).splitlines()[0]
    counts, _ = count_operations(built, model.crop)
    return sum(value.numel() for _, value in named_parameters(built).items()), sum(counts.values()), None


def score_text(metrics: dict) -> str:
    """`48.03/49.68`, or the other metrics by name."""
    from jseg.convert.model_index import MIOU, MIOU_AUGMENTED

    if MIOU in metrics:
        return "/".join(f"{metrics[key]:g}" for key in (MIOU, MIOU_AUGMENTED) if key in metrics)
    return ", ".join(f"{key} {value:g}" for key, value in metrics.items())


def table(rows: list[dict], long: bool) -> str:
    """One line for each model."""
    head = ("name", "dataset", "mIoU ss/ms+flip", "parameters", "G operations", "builds here",
            *("config", "address") * long)
    lines = [head]
    for facts in rows:
        missing, builds = facts["missing_types"], "no" if facts["fault"] else "yes"
        if missing:
            builds = f"lacks {', '.join(missing[:2])}{', ...' * (len(missing) > 2)}"
        lines.append((facts["name"], facts["dataset"], score_text(facts["metrics"]),
                      f"{facts['parameters']:,}" if facts["parameters"] else "-",
                      f"{facts['operations'] / 1e9:.1f}" if facts["operations"] else "-", builds,
                      *(facts["config"], facts["url"]) * long))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip() for line in lines)


def card(facts: dict) -> str:
    """One model, a line for each fact."""
    from jseg.convert.model_card import card_lines
    return "\n".join([facts["name"], *(f"  {key:<13}{value}" for key, value in card_lines(facts))])
