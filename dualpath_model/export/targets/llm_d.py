"""Target ``llm-d``: the router's EndpointPickerConfig, P/D disaggregation by the append break-even."""

from __future__ import annotations

import math

from dualpath_model.errors import InputError
from dualpath_model.export.documents import yaml_file
from dualpath_model.export.target import Asked, Bundle, Dropped, Target, no_decode_reads, no_qos
from dualpath_model.export.targets._break_even import append_threshold, below_threshold
from dualpath_model.export.values import Document, Value, derived, fixed

# What a request counts as while it is in flight. 0.8.0 (the last as llm-d-inference-scheduler) adds an
# output of 1.5 x the prompt to the whole prompt (inflightload/token_estimator.go); the prefix-cache
# discount of llm-d-router pull request 1029 is in 0.9.0: only what is still to be computed counts.
UNCACHED_SINCE = "0.9.0"
_OUTPUT_RATIO = 1.5
# Hash blocks beyond the first 256 of 16 tokens are not matched by default (approximateprefix/types.go).
_MATCHED_BY_DEFAULT = 4096


def build(asked: Asked) -> Bundle:
    """Return the config."""
    limit = _limit(asked)
    threshold = append_threshold(asked.deployment)
    document: Document = {
        "apiVersion": fixed("llm-d.ai/v1alpha1", "the router's own group"),
        "kind": fixed("EndpointPickerConfig", "what the router reads"),
        "plugins": [
            _plugin(
                "approx-prefix-cache-producer",
                "estimates which endpoint holds which prefix",
                {"maxPrefixTokensToMatch": _longest(asked)},
            ),
            _plugin("prefix-cache-scorer", "prefers the endpoint that holds the longest prefix"),
            _plugin("queue-scorer", "prefers the shortest queue"),
            _plugin(
                "token-load-scorer",
                "prefers the fewest tokens in flight, the plan's rule among prefill engines",
                {"queueThresholdTokens": limit},
            ),
            _plugin(
                "concurrency-detector",
                "takes prefill endpoints beyond beta out of the choice",
                {
                    "concurrencyMode": fixed(
                        "tokens", "maxTokenConcurrency is read in this mode only"
                    ),
                    "maxTokenConcurrency": limit,
                },
            ),
            _plugin("prefill-filter", "endpoints with the label llm-d.ai/role: prefill"),
            _plugin("decode-filter", "endpoints with the label llm-d.ai/role: decode"),
            _plugin("max-score-picker", "the best score wins"),
            _plugin(
                "prefix-based-pd-decider",
                "prefill apart only above the append break-even",
                {"nonCachedTokens": threshold},
            ),
            _plugin(
                "disagg-profile-handler",
                "decode endpoint first, then a prefill endpoint if the decider says so",
                {
                    "profiles": {
                        "prefill": fixed("prefill", "profile below"),
                        "decode": fixed("decode", "profile below"),
                    },
                    "deciders": {"prefill": fixed("prefix-based-pd-decider", "plugin above")},
                },
            ),
        ],
        "schedulingProfiles": [
            {
                "name": fixed("prefill", "chooses the prefill endpoint"),
                "plugins": [
                    _use("prefill-filter", "the pool"),
                    _use("concurrency-detector", "beta"),
                    _use(
                        "token-load-scorer", "least tokens: the plan's rule, so it weighs most", 2.0
                    ),
                    _use("prefix-cache-scorer", "saves reads where loads are alike", 1.0),
                    _use("max-score-picker", "the choice"),
                ],
            },
            {
                "name": fixed("decode", "chooses the decode endpoint"),
                "plugins": [
                    _use("decode-filter", "the pool"),
                    _use("prefix-cache-scorer", "as in the router's own P/D sample", 2.0),
                    _use("queue-scorer", "fewest requests: the plan's rule below Z", 1.0),
                    _use("max-score-picker", "the choice"),
                ],
            },
        ],
    }
    head = [
        f"llm-d router {asked.version}, from plan {asked.plan.scenario}",
        "Pass it as --config-file; no environment of the router's own has read it, see README.md.",
    ]
    about = "the router's (endpoint picker's) `--config-file`: filters, scorers, beta, append break-even"
    file = yaml_file("epp-config.yaml", about, document, head=head)
    return Bundle((file,), tuple(_dropped(asked)), tuple(_notes(asked, threshold.value)))


def _plugin(name: str, why: str, parameters: Document = None) -> dict[str, Document]:
    part: dict[str, Document] = {"type": fixed(name, why)}
    return part | ({"parameters": parameters} if parameters else {})


def _use(name: str, why: str, weight: float | None = None) -> dict[str, Document]:
    part: dict[str, Document] = {"pluginRef": fixed(name, why)}
    return part | ({"weight": fixed(weight, why)} if weight is not None else {})


def _longest(asked: Asked) -> Value:
    most = asked.deployment.workload.prompt_tokens.most
    return derived(
        math.ceil(most),
        f"longest prompt of the workload: the default matches {_MATCHED_BY_DEFAULT} tokens and "
        "takes the rest of every hit for uncached, so that the decider would always prefill apart",
        "tokens",
        prompt_tokens_most=most,
    )


def _limit(asked: Asked) -> Value:
    """Return beta of one engine in the tokens that this version counts. Raises InputError below 1."""
    deployment = asked.deployment
    if asked.since(UNCACHED_SINCE):
        kind = min(deployment.pool("prefill"), key=lambda kind: kind.prefill_tokens_per_s)
        tokens = deployment.beta_s * kind.prefill_tokens_per_s
        how = (
            "beta_s x tokens/s that an engine computes: the router counts what is not in its cache"
        )
        inputs = {"prefill_tokens_per_s": kind.prefill_tokens_per_s}
    else:
        kind = min(deployment.pool("prefill"), key=lambda kind: kind.beta_tokens)
        tokens = kind.beta_tokens * (1 + _OUTPUT_RATIO)
        how = (
            "beta of an engine in prompt tokens x 2.5: the router counts a request as its whole "
            "prompt and an output of 1.5 times that"
        )
        inputs = {"beta_tokens": kind.beta_tokens}
    if tokens < 1:
        raise InputError(
            f"plan: beta is {tokens:.3g} tokens of an engine, but llm-d's maxTokenConcurrency must "
            "be at least 1; raise scheduler.beta of the scenario"
        )
    return derived(
        math.floor(tokens),
        f"{how}; of the slowest kind of prefill node",
        "tokens of an endpoint",
        beta_s=deployment.beta_s,
        **inputs,
    )


def _notes(asked: Asked, threshold: int) -> list[str]:
    return [
        f"nonCachedTokens {threshold}: {below_threshold(asked.deployment, threshold)} and stay on "
        "the decode endpoint if it still holds their hits. 0 would turn disaggregation off and is "
        "never written",
        "an endpoint is one engine: with several engines on a node, or data-parallel ranks, each "
        "has a port of its own in the InferencePool",
        "the router counts a prompt's tokens as characters / 4 until it has a tokenizer; with "
        "another language or code the thresholds move by that much",
        "if all prefill endpoints are beyond beta, the router has no prefill endpoint to name and "
        "the request is prefilled where it decodes; the plan's scheduler would let it wait",
    ]


def _dropped(asked: Asked) -> list[Dropped]:
    plan, deployment = asked.plan, asked.deployment
    alpha, z = plan.scheduler_parameters.alpha_tokens, plan.scheduler_parameters.z_factor
    found = [
        no_decode_reads(plan, "the router chooses endpoints, not who reads the hits from storage"),
        Dropped(
            what=f"alpha = {alpha:.0f} tokens: prefer nodes with a short read queue",
            why="the router sees engines, not their nodes' storage NICs",
            effect=f"a node may have more than {deployment.alpha_s:g} s of reads waiting while "
            "another is idle; its turns wait that much longer for their first token",
        ),
        Dropped(
            what=f"Z = {z:g} x the mean tokens of a decode engine",
            why="queue-scorer compares requests; there is no limit relative to the mean",
            effect="decode engines hold unequal numbers of tokens where turns are of unequal "
            f"length: of the workload's prompts p99 is {_spread(asked):.1f} times the mean",
        ),
        Dropped(
            what=f"quota = {deployment.quota_s:g} s, buffers, counts, parallelism",
            why="they belong to the engines",
            effect="none from here: the targets vllm and sglang set them",
        ),
        no_qos(plan),
    ]
    betas = {kind.beta_tokens for kind in deployment.pool("prefill")}
    if len(betas) > 1:
        found.append(
            Dropped(
                what="beta of each kind of prefill node",
                why="one plugin instance has one limit for all endpoints",
                effect="the slowest kind's is used; the fastest is full at "
                f"{min(betas) / max(betas):.0%} of its own",
            )
        )
    return found


def _spread(asked: Asked) -> float:
    prompt = asked.deployment.workload.prompt_tokens
    return prompt.p99 / prompt.mean if prompt.mean else 1.0


TARGET = Target(
    name="llm-d",
    software="llm-d router",
    about="EndpointPickerConfig: which engine gets a request, and whether its prefill is apart.",
    versions=("0.8.0",),
    expresses=(
        "append break-even (prefix-based-pd-decider)",
        "beta (concurrency-detector, token-load-scorer)",
        "least tokens for prefill, least requests for decode",
    ),
    cannot=(
        "split x",
        "alpha, Z, quota",
        "counts, buffers, parallelism (target vllm or sglang)",
        "QoS weights (target opensm or roce)",
    ),
    parser="none here: the router is a Go program and in no package; our own list of its keys, "
    "plugin types and parameters, read in its source and tested on its own sample configurations",
    apply=(
        "Put epp-config.yaml into the ConfigMap of the endpoint picker: `kubectl create configmap "
        "NAME -n NAMESPACE --from-file=epp-config.yaml`, or the target kubernetes with `--wrap "
        "llm-d`.",
        "Start the endpoint picker with `--config-file /config/epp-config.yaml`.",
        "Label the engines' Pods `llm-d.ai/role: prefill` or `llm-d.ai/role: decode`, and give "
        "decode Pods the router's disaggregation sidecar.",
    ),
    check=(
        "The endpoint picker starts: an unknown plugin type or reference ends it with a message.",
        "Its log has no `Prefix-based PD disabled`.",
        "Its metric of disaggregation decisions counts both `prefill-decode` and `decode-only`.",
    ),
    roll_back=("Apply the ConfigMap of before and restart the endpoint picker.",),
    build=build,
)
