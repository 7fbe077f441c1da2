"""Write src/llmprod/pricing/snapshot.json: the prices of current models, from the genai-prices that is installed.

    python tools/price_snapshot.py            # write it, dated today
    python tools/price_snapshot.py --check    # tell what is missing or would change; 1 if anything would

Only models in MODELS are taken; add new ones there. The rules by which an id is known are taken over as they are, so a
model that is left out must not be known by the rule of one that is taken: that is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from importlib.metadata import distribution, version
from pathlib import Path

from genai_prices.data import providers

from llmprod.pricing._genai import sheet_of
from llmprod.pricing.sheet import Cliff, Sheet, When

PLACE = Path(__file__).parents[1] / "src" / "llmprod" / "pricing" / "snapshot.json"

MODELS = {
    "openai": """
        gpt-6-astra gpt-6-luna gpt-6-sol gpt-6.1-sol gpt-6.1-terra gpt-5.6-luna gpt-5.6-sol gpt-5.6-terra gpt-5.5
        gpt-5.5-pro gpt-5.4 gpt-5.4-mini gpt-5.4-nano gpt-5.4-pro gpt-5.2 gpt-5.1 gpt-5 gpt-5-mini gpt-5-nano gpt-4.1
        gpt-4.1-mini gpt-4.1-nano gpt-4o gpt-4o-mini o3 o4-mini gpt-audio text-embedding-3-large text-embedding-3-small
    """,
    "anthropic": """
        claude-fable-5-2 claude-haiku-4-5 claude-haiku-5-5 claude-opus-4-5 claude-opus-4-6 claude-opus-4-7
        claude-opus-4-8 claude-opus-5 claude-opus-5-5 claude-sonnet-4-5 claude-sonnet-4-6 claude-sonnet-5
        claude-sonnet-5-5
    """,
    "google": """
        gemini-2.5-flash gemini-2.5-flash-lite gemini-2.5-pro gemini-3-flash-preview gemini-3.1-flash-lite
        gemini-3.1-pro-preview gemini-3.5-flash gemini-3.5-flash-lite gemini-3.6-flash gemini-3.7-flash gemini-3.8-flash
        gemini-4-argon gemini-embedding-001 gemini-embedding-2
    """,
    "mistral": """
        codestral ministral-3b-2512 ministral-8b-2512 ministral-14b-2512 mistral-large-2512 mistral-large-4
        mistral-medium-3-5 mistral-medium-latest mistral-small-2603 mistral-small-latest mistral-embed
    """,
    "deepseek": "deepseek-chat deepseek-flash deepseek-reasoner deepseek-v4-flash deepseek-v4-pro",
    "x-ai": "grok-4.3 grok-4.5 grok-4.6 grok-4.7 grok-4-1-fast-reasoning grok-4-1-fast-non-reasoning grok-code-fast-1",
    "groq": """
        llama-3.1-8b-instant llama-3.3-70b-versatile openai/gpt-oss-120b openai/gpt-oss-20b qwen/qwen3-32b
        qwen/qwen3.8-27b moonshotai/kimi-k2-instruct
    """,
}


def snapshot(day: str) -> dict[str, object]:
    by_id = {provider.id: provider for provider in providers}
    return {
        "date": day,
        "source": f"genai-prices {version('genai-prices')}, https://github.com/pydantic/genai-prices",
        "license": license_text().strip().splitlines(),
        "providers": {name: seller(by_id[name], ids.split()) for name, ids in MODELS.items()},
    }


def license_text() -> str:
    files = distribution("genai-prices").files or ()
    return next(file for file in files if file.name == "LICENSE").read_text()


def seller(provider, ids: list[str]) -> dict[str, object]:
    known = {model.id: model for model in provider.models}
    missing = [name for name in ids if name not in known]
    if missing:
        sys.exit(f"{provider.id}: genai-prices has no {', '.join(missing)}")
    taken = [model for model in provider.models if model.id in ids]
    for model in provider.models:
        first = next((other for other in taken if other.is_match(model.id)), None)
        if first is not None and provider.find_model(model.id) is not first:
            sys.exit(f"{provider.id}: {model.id}, left out, would be taken for {first.id}")
    return {
        "url": provider.api_pattern,
        "names": provider.model_match and rule(provider.model_match),
        "models": [
            {"id": model.id, "match": rule(model.match), **told(sheet_of(provider.id, model))} for model in taken
        ],
    }


def rule(clause) -> dict[str, object]:
    ((name, value),) = vars(clause).items()
    if name in ("or_", "and_"):
        return {name.rstrip("_"): [rule(part) for part in value]}
    return {name: value}


def told(sheet: Sheet) -> dict[str, object]:
    made: dict[str, object] = {
        "periods": [{**when(period.when), "rates": rates(period.rates)} for period in sheet.periods]
    }
    if sheet.variants:
        made["tiers"] = [
            {"tier": variant.tier, **when(variant.when), "rates": rates(variant.rates)} for variant in sheet.variants
        ]
    if sheet.apart:
        made["apart"] = sorted(sheet.apart)
    return made


def when(condition: When | None) -> dict[str, object]:
    if condition is None:
        return {}
    if condition.since is not None:
        return {"since": condition.since.isoformat()}
    return {"hours": [moment.isoformat("minutes") for moment in condition.hours]}


def rates(given) -> dict[str, object]:
    return {
        name: {"base": f"{rate.base:f}", "above": [[start, f"{price:f}"] for start, price in rate.above]}
        if isinstance(rate, Cliff)
        else f"{rate:f}"
        for name, rate in given.items()
    }


def written(made: dict[str, object]) -> str:
    """JSON with a line for each model, so that a change of prices shows as one."""
    body = dict(made)
    sellers = body.pop("providers")
    lines = [json.dumps(body, indent=1)[:-2] + ",", ' "providers": {']
    for place, (name, seller_) in enumerate(sellers.items()):
        head = {key: value for key, value in seller_.items() if key != "models"}
        lines.append(f'  {json.dumps(name)}: {json.dumps(head)[:-1]}, "models": [')
        lines += [f"   {json.dumps(model)}," for model in seller_["models"]]
        lines[-1] = lines[-1].removesuffix(",")
        lines.append("  ]}" + ("," if place < len(sellers) - 1 else ""))
    return "\n".join([*lines, " }", "}", ""])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="write nothing")
    check = options.parse_args().check
    if check:
        old = json.loads(PLACE.read_text())
        made = snapshot(old["date"])
        changed = [name for name in MODELS if made["providers"][name] != old["providers"][name]]
        print("changed: " + ", ".join(changed) if changed else "nothing would change")
        return 1 if changed else 0
    made = snapshot(datetime.now(tz=UTC).date().isoformat())
    PLACE.write_text(written(made))
    count = sum(len(seller_["models"]) for seller_ in made["providers"].values())
    print(f"{count} models, {PLACE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
