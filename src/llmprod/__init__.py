"""llmprod: production behaviour around language-model calls, in your process.

``from llmprod import Client`` is the whole start; every public name is at this level. Nothing is imported until used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from llmprod._calls import CallOptions as CallOptions
    from llmprod._calls import GenerateOptions as GenerateOptions
    from llmprod.batch import Batch as Batch
    from llmprod.batch import BatchItem as BatchItem
    from llmprod.batch import BatchProgress as BatchProgress
    from llmprod.batch import BatchResult as BatchResult
    from llmprod.batch import StoredError as StoredError
    from llmprod.batch import SyncBatch as SyncBatch
    from llmprod.batch import read_checkpoint as read_checkpoint
    from llmprod.client import AsyncClient as AsyncClient
    from llmprod.client import Client as Client
    from llmprod.client import StreamCall as StreamCall
    from llmprod.clock import Clock as Clock
    from llmprod.clock import LoopClock as LoopClock
    from llmprod.clock import Random as Random
    from llmprod.clock import SystemClock as SystemClock
    from llmprod.context import CacheMode as CacheMode
    from llmprod.context import CallState as CallState
    from llmprod.context import Context as Context
    from llmprod.context import Fare as Fare
    from llmprod.context import Lane as Lane
    from llmprod.context import Toll as Toll
    from llmprod.cost import Cost as Cost
    from llmprod.cost_table import CostEntry as CostEntry
    from llmprod.cost_table import CostTable as CostTable
    from llmprod.cost_table import CostTotals as CostTotals
    from llmprod.decisions import AnswerLimited as AnswerLimited
    from llmprod.decisions import AttemptRefused as AttemptRefused
    from llmprod.decisions import BreakerChanged as BreakerChanged
    from llmprod.decisions import BudgetEstimated as BudgetEstimated
    from llmprod.decisions import BudgetOverrun as BudgetOverrun
    from llmprod.decisions import BudgetPassedSoft as BudgetPassedSoft
    from llmprod.decisions import BudgetRefused as BudgetRefused
    from llmprod.decisions import BudgetStoreChanged as BudgetStoreChanged
    from llmprod.decisions import CachedContentLost as CachedContentLost
    from llmprod.decisions import CacheHit as CacheHit
    from llmprod.decisions import CacheJoined as CacheJoined
    from llmprod.decisions import CacheMiss as CacheMiss
    from llmprod.decisions import CacheRefreshed as CacheRefreshed
    from llmprod.decisions import CacheSkipped as CacheSkipped
    from llmprod.decisions import CacheStoreChanged as CacheStoreChanged
    from llmprod.decisions import CacheStored as CacheStored
    from llmprod.decisions import CallShed as CallShed
    from llmprod.decisions import CallThrottled as CallThrottled
    from llmprod.decisions import CallWaited as CallWaited
    from llmprod.decisions import ChaosInjected as ChaosInjected
    from llmprod.decisions import ConcurrencyChanged as ConcurrencyChanged
    from llmprod.decisions import CrawlStopped as CrawlStopped
    from llmprod.decisions import Decision as Decision
    from llmprod.decisions import HedgeEnded as HedgeEnded
    from llmprod.decisions import HedgeStarted as HedgeStarted
    from llmprod.decisions import HistoryTrimmed as HistoryTrimmed
    from llmprod.decisions import KeyQuarantined as KeyQuarantined
    from llmprod.decisions import LeastBadTried as LeastBadTried
    from llmprod.decisions import LimitCalibrated as LimitCalibrated
    from llmprod.decisions import LimitRefused as LimitRefused
    from llmprod.decisions import LimitStoreChanged as LimitStoreChanged
    from llmprod.decisions import LimitWaited as LimitWaited
    from llmprod.decisions import Listener as Listener
    from llmprod.decisions import PrefixVolatile as PrefixVolatile
    from llmprod.decisions import QuotaPaused as QuotaPaused
    from llmprod.decisions import ResumeRefused as ResumeRefused
    from llmprod.decisions import RetryScheduled as RetryScheduled
    from llmprod.decisions import RunawayStopped as RunawayStopped
    from llmprod.decisions import StreamHeld as StreamHeld
    from llmprod.decisions import StreamResumed as StreamResumed
    from llmprod.decisions import TargetChosen as TargetChosen
    from llmprod.decisions import TargetPaused as TargetPaused
    from llmprod.decisions import TierGivenUp as TierGivenUp
    from llmprod.decorators import resilient as resilient
    from llmprod.errors import AllTargetsFailed as AllTargetsFailed
    from llmprod.errors import AttemptTimedOut as AttemptTimedOut
    from llmprod.errors import AuthenticationFailed as AuthenticationFailed
    from llmprod.errors import BadRequest as BadRequest
    from llmprod.errors import BudgetExceeded as BudgetExceeded
    from llmprod.errors import BudgetUnavailable as BudgetUnavailable
    from llmprod.errors import BulkheadFull as BulkheadFull
    from llmprod.errors import CallError as CallError
    from llmprod.errors import CallTimeout as CallTimeout
    from llmprod.errors import CircuitOpen as CircuitOpen
    from llmprod.errors import ClientClosed as ClientClosed
    from llmprod.errors import ConnectError as ConnectError
    from llmprod.errors import ConnectTimeout as ConnectTimeout
    from llmprod.errors import ContentFiltered as ContentFiltered
    from llmprod.errors import ContextTooLong as ContextTooLong
    from llmprod.errors import DeadlineExceeded as DeadlineExceeded
    from llmprod.errors import EngineDied as EngineDied
    from llmprod.errors import EngineNotReady as EngineNotReady
    from llmprod.errors import EngineStartFailed as EngineStartFailed
    from llmprod.errors import FirstTokenTimeout as FirstTokenTimeout
    from llmprod.errors import ForkedProcess as ForkedProcess
    from llmprod.errors import IdleTimeout as IdleTimeout
    from llmprod.errors import InvalidArgument as InvalidArgument
    from llmprod.errors import InvalidOutput as InvalidOutput
    from llmprod.errors import LLMProdError as LLMProdError
    from llmprod.errors import MissingKey as MissingKey
    from llmprod.errors import NotCached as NotCached
    from llmprod.errors import NotFound as NotFound
    from llmprod.errors import NoUsableKey as NoUsableKey
    from llmprod.errors import Overloaded as Overloaded
    from llmprod.errors import PermissionDenied as PermissionDenied
    from llmprod.errors import PriceUnknown as PriceUnknown
    from llmprod.errors import ProtocolError as ProtocolError
    from llmprod.errors import ProviderError as ProviderError
    from llmprod.errors import QuotaExhausted as QuotaExhausted
    from llmprod.errors import RateLimited as RateLimited
    from llmprod.errors import RateLimitExceeded as RateLimitExceeded
    from llmprod.errors import ReadError as ReadError
    from llmprod.errors import Rejected as Rejected
    from llmprod.errors import RunawayAnswer as RunawayAnswer
    from llmprod.errors import ServerError as ServerError
    from llmprod.errors import Shed as Shed
    from llmprod.errors import StoreUnavailable as StoreUnavailable
    from llmprod.errors import StreamInterrupted as StreamInterrupted
    from llmprod.errors import StreamTooSlow as StreamTooSlow
    from llmprod.errors import TransportError as TransportError
    from llmprod.errors import TruncatedAnswer as TruncatedAnswer
    from llmprod.errors import UnsupportedParameter as UnsupportedParameter
    from llmprod.events import Event as Event
    from llmprod.events import Finish as Finish
    from llmprod.events import Item as Item
    from llmprod.events import PartDone as PartDone
    from llmprod.events import RefusalDelta as RefusalDelta
    from llmprod.events import Reset as Reset
    from llmprod.events import Seam as Seam
    from llmprod.events import Start as Start
    from llmprod.events import TextDelta as TextDelta
    from llmprod.events import ThinkingDelta as ThinkingDelta
    from llmprod.events import TokenLogprob as TokenLogprob
    from llmprod.events import ToolCallDelta as ToolCallDelta
    from llmprod.events import ToolCallDone as ToolCallDone
    from llmprod.events import UsageUpdate as UsageUpdate
    from llmprod.ledger import Ledger as Ledger
    from llmprod.mechanisms.adaptive_throttle import Throttle as Throttle
    from llmprod.mechanisms.answer_length import AnswerLengths as AnswerLengths
    from llmprod.mechanisms.backoff import Backoff as Backoff
    from llmprod.mechanisms.balancing import BalancePolicy as BalancePolicy
    from llmprod.mechanisms.balancing import PowerOfTwo as PowerOfTwo
    from llmprod.mechanisms.balancing import Priority as Priority
    from llmprod.mechanisms.balancing import Weighted as Weighted
    from llmprod.mechanisms.budget import BudgetLimit as BudgetLimit
    from llmprod.mechanisms.budget_store import BudgetStore as BudgetStore
    from llmprod.mechanisms.cache_key import normalised_prompt as normalised_prompt
    from llmprod.mechanisms.cache_ledger import PromptCacheStats as PromptCacheStats
    from llmprod.mechanisms.cache_prices import CachePrices as CachePrices
    from llmprod.mechanisms.cache_prices import break_even_reads as break_even_reads
    from llmprod.mechanisms.cache_prices import cached_content_saves as cached_content_saves
    from llmprod.mechanisms.circuit_breaker import Breaker as Breaker
    from llmprod.mechanisms.circuit_breaker import BreakerOptions as BreakerOptions
    from llmprod.mechanisms.circuit_breaker import BreakerState as BreakerState
    from llmprod.mechanisms.concurrency_limit import AIMDLimit as AIMDLimit
    from llmprod.mechanisms.concurrency_limit import ConcurrencyLimit as ConcurrencyLimit
    from llmprod.mechanisms.concurrency_limit import ConcurrencyPermit as ConcurrencyPermit
    from llmprod.mechanisms.concurrency_limit import FixedLimit as FixedLimit
    from llmprod.mechanisms.concurrency_limit import QueueLimit as QueueLimit
    from llmprod.mechanisms.engine_meter import EngineStats as EngineStats
    from llmprod.mechanisms.gradient2 import Gradient2 as Gradient2
    from llmprod.mechanisms.key_ring import KeyRing as KeyRing
    from llmprod.mechanisms.key_ring import QuotaGroup as QuotaGroup
    from llmprod.mechanisms.latency_window import LatencyWindow as LatencyWindow
    from llmprod.mechanisms.limit_store import Limit as Limit
    from llmprod.mechanisms.limit_store import Limits as Limits
    from llmprod.mechanisms.limit_store import LimitStore as LimitStore
    from llmprod.mechanisms.peak_ewma import PeakEwma as PeakEwma
    from llmprod.mechanisms.prefix_chain import prefix_order as prefix_order
    from llmprod.mechanisms.prefix_lint import PrefixFinding as PrefixFinding
    from llmprod.mechanisms.prefix_lint import prefix_lint as prefix_lint
    from llmprod.mechanisms.rate_limit import RateLimiter as RateLimiter
    from llmprod.mechanisms.restart import RestartPolicy as RestartPolicy
    from llmprod.mechanisms.resume_plan import ContinueText as ContinueText
    from llmprod.mechanisms.resume_plan import Restart as Restart
    from llmprod.mechanisms.resume_plan import SynthesizeToolUse as SynthesizeToolUse
    from llmprod.mechanisms.resume_plan import TruncateBeforeTool as TruncateBeforeTool
    from llmprod.mechanisms.retry_budget import RetryBudget as RetryBudget
    from llmprod.mechanisms.sticky import Sticky as Sticky
    from llmprod.mechanisms.token_estimate import TokenEstimate as TokenEstimate
    from llmprod.mechanisms.warmth import Warmth as Warmth
    from llmprod.presets import local_first as local_first
    from llmprod.presets import standard as standard
    from llmprod.pricing import Price as Price
    from llmprod.pricing import PriceBook as PriceBook
    from llmprod.provider import BaseProvider as BaseProvider
    from llmprod.provider import Capabilities as Capabilities
    from llmprod.provider import Provider as Provider
    from llmprod.providers._http import HTTPOptions as HTTPOptions
    from llmprod.providers._vllm.completion_stream import CompletionStream as CompletionStream
    from llmprod.providers._vllm.engine import EngineState as EngineState
    from llmprod.providers._vllm.incarnation import StartTimes as StartTimes
    from llmprod.providers._vllm.options import EngineOptions as EngineOptions
    from llmprod.providers._vllm.records import MTP as MTP
    from llmprod.providers._vllm.records import DraftModel as DraftModel
    from llmprod.providers._vllm.records import Eagle as Eagle
    from llmprod.providers._vllm.records import LoRA as LoRA
    from llmprod.providers._vllm.records import Medusa as Medusa
    from llmprod.providers._vllm.records import NGram as NGram
    from llmprod.providers._vllm.records import Parallel as Parallel
    from llmprod.providers._vllm.records import Speculative as Speculative
    from llmprod.providers._vllm.records import StructuredOutputs as StructuredOutputs
    from llmprod.providers._vllm.sampling import Sampling as Sampling
    from llmprod.providers._vllm.sampling import Structured as Structured
    from llmprod.providers._vllm.token_records import Classified as Classified
    from llmprod.providers._vllm.token_records import Completion as Completion
    from llmprod.providers._vllm.token_records import CompletionChoice as CompletionChoice
    from llmprod.providers._vllm.token_records import CompletionDelta as CompletionDelta
    from llmprod.providers._vllm.token_records import Ranked as Ranked
    from llmprod.providers._vllm.token_records import Score as Score
    from llmprod.providers._vllm.token_records import ScoredToken as ScoredToken
    from llmprod.providers.anthropic import Anthropic as Anthropic
    from llmprod.providers.google import Google as Google
    from llmprod.providers.openai import OpenAI as OpenAI
    from llmprod.providers.openai_compatible import OpenAICompatible as OpenAICompatible
    from llmprod.providers.openai_compatible import Profile as Profile
    from llmprod.providers.simulated import Simulated as Simulated
    from llmprod.providers.static import Static as Static
    from llmprod.providers.vllm import VLLM as VLLM
    from llmprod.record import CallRecord as CallRecord
    from llmprod.record import capture as capture
    from llmprod.request import EmbedRequest as EmbedRequest
    from llmprod.request import GenerateRequest as GenerateRequest
    from llmprod.request import Request as Request
    from llmprod.response import Cached as Cached
    from llmprod.response import EngineTiming as EngineTiming
    from llmprod.response import EventSource as EventSource
    from llmprod.response import Outcome as Outcome
    from llmprod.response import Response as Response
    from llmprod.response import Timing as Timing
    from llmprod.response import WrappedSource as WrappedSource
    from llmprod.schema import OutputSchema as OutputSchema
    from llmprod.schema import Tool as Tool
    from llmprod.store import Store as Store
    from llmprod.stores.disk import DiskStore as DiskStore
    from llmprod.stores.disk_budgets import DiskBudgets as DiskBudgets
    from llmprod.stores.encrypted import Encrypted as Encrypted
    from llmprod.stores.memory import MemoryStats as MemoryStats
    from llmprod.stores.memory import MemoryStore as MemoryStore
    from llmprod.stores.redis import RedisLimits as RedisLimits
    from llmprod.stores.redis_budgets import RedisBudgets as RedisBudgets
    from llmprod.stores.redis_store import RedisStore as RedisStore
    from llmprod.sync_response import SyncResponse as SyncResponse
    from llmprod.tokens import TokenCount as TokenCount
    from llmprod.tokens import TokenCounter as TokenCounter
    from llmprod.tokens import TokenError as TokenError
    from llmprod.tokens import count_tokens as count_tokens
    from llmprod.tokens import count_tokens_async as count_tokens_async
    from llmprod.tokens import default_counter as default_counter
    from llmprod.trace import Attempt as Attempt
    from llmprod.trace import AttemptEnd as AttemptEnd
    from llmprod.trace import Trace as Trace
    from llmprod.types import Audio as Audio
    from llmprod.types import File as File
    from llmprod.types import Image as Image
    from llmprod.types import Message as Message
    from llmprod.types import Opaque as Opaque
    from llmprod.types import Part as Part
    from llmprod.types import Refusal as Refusal
    from llmprod.types import Text as Text
    from llmprod.types import Thinking as Thinking
    from llmprod.types import ToolCall as ToolCall
    from llmprod.types import ToolResult as ToolResult
    from llmprod.usage import FinishReason as FinishReason
    from llmprod.usage import Usage as Usage
    from llmprod.verdict import Action as Action
    from llmprod.verdict import Classifier as Classifier
    from llmprod.verdict import Verdict as Verdict
    from llmprod.verdict import classify as classify
    from llmprod.wrapper import Phase as Phase
    from llmprod.wrapper import Stack as Stack
    from llmprod.wrapper import StackOrderWarning as StackOrderWarning
    from llmprod.wrapper import WrappedProvider as WrappedProvider
    from llmprod.wrapper import Wrapper as Wrapper
    from llmprod.wrapper import deployment as deployment
    from llmprod.wrapper import describe as describe
    from llmprod.wrapper import lint as lint
    from llmprod.wrappers._memory_budgets import MemoryBudgets as MemoryBudgets
    from llmprod.wrappers.adaptive_throttle import AdaptiveThrottle as AdaptiveThrottle
    from llmprod.wrappers.attempt_timeout import AttemptTimeout as AttemptTimeout
    from llmprod.wrappers.balance import Balance as Balance
    from llmprod.wrappers.budget import Budget as Budget
    from llmprod.wrappers.budget import BudgetState as BudgetState
    from llmprod.wrappers.bulkhead import Bulkhead as Bulkhead
    from llmprod.wrappers.cache import Cache as Cache
    from llmprod.wrappers.cache import CacheStats as CacheStats
    from llmprod.wrappers.chaos import Chaos as Chaos
    from llmprod.wrappers.cheapest import Cheapest as Cheapest
    from llmprod.wrappers.circuit_breaker import CircuitBreaker as CircuitBreaker
    from llmprod.wrappers.context_window import ContextWindow as ContextWindow
    from llmprod.wrappers.cost_meter import CostMeter as CostMeter
    from llmprod.wrappers.deadline import Deadline as Deadline
    from llmprod.wrappers.failover import Failover as Failover
    from llmprod.wrappers.hedge import Hedge as Hedge
    from llmprod.wrappers.key_pool import KeyPool as KeyPool
    from llmprod.wrappers.max_tokens import MaxTokens as MaxTokens
    from llmprod.wrappers.overflow import Overflow as Overflow
    from llmprod.wrappers.prompt_caching import PromptCaching as PromptCaching
    from llmprod.wrappers.rate_limit import RateLimit as RateLimit
    from llmprod.wrappers.resume import Resume as Resume
    from llmprod.wrappers.retry import Retry as Retry
    from llmprod.wrappers.service_tier import ServiceTier as ServiceTier
    from llmprod.wrappers.throughput_guard import ThroughputGuard as ThroughputGuard

# The module that each public name lives in; tests/api.txt freezes the list.
_HOME = {
    "batch": (
        "Batch",
        "BatchItem",
        "BatchProgress",
        "BatchResult",
        "StoredError",
        "SyncBatch",
        "read_checkpoint",
    ),
    "_calls": (
        "CallOptions",
        "GenerateOptions",
    ),
    "client": (
        "AsyncClient",
        "Client",
        "StreamCall",
    ),
    "clock": (
        "Clock",
        "LoopClock",
        "Random",
        "SystemClock",
    ),
    "context": (
        "CacheMode",
        "CallState",
        "Context",
        "Fare",
        "Lane",
        "Toll",
    ),
    "cost": ("Cost",),
    "cost_table": (
        "CostEntry",
        "CostTable",
        "CostTotals",
    ),
    "decisions": (
        "AnswerLimited",
        "AttemptRefused",
        "BreakerChanged",
        "BudgetEstimated",
        "BudgetOverrun",
        "BudgetPassedSoft",
        "BudgetRefused",
        "BudgetStoreChanged",
        "CacheHit",
        "CacheJoined",
        "CacheMiss",
        "CacheRefreshed",
        "CacheSkipped",
        "CacheStoreChanged",
        "CacheStored",
        "CachedContentLost",
        "CallShed",
        "CallThrottled",
        "CallWaited",
        "ChaosInjected",
        "ConcurrencyChanged",
        "CrawlStopped",
        "Decision",
        "HedgeEnded",
        "HedgeStarted",
        "HistoryTrimmed",
        "KeyQuarantined",
        "LeastBadTried",
        "LimitCalibrated",
        "LimitRefused",
        "LimitStoreChanged",
        "LimitWaited",
        "Listener",
        "PrefixVolatile",
        "QuotaPaused",
        "ResumeRefused",
        "RetryScheduled",
        "RunawayStopped",
        "StreamHeld",
        "StreamResumed",
        "TargetChosen",
        "TargetPaused",
        "TierGivenUp",
    ),
    "decorators": ("resilient",),
    "errors": (
        "AllTargetsFailed",
        "AttemptTimedOut",
        "AuthenticationFailed",
        "BadRequest",
        "BudgetExceeded",
        "BudgetUnavailable",
        "BulkheadFull",
        "CallError",
        "CallTimeout",
        "CircuitOpen",
        "ClientClosed",
        "ConnectError",
        "ConnectTimeout",
        "ContentFiltered",
        "ContextTooLong",
        "DeadlineExceeded",
        "EngineDied",
        "EngineNotReady",
        "EngineStartFailed",
        "FirstTokenTimeout",
        "ForkedProcess",
        "IdleTimeout",
        "InvalidArgument",
        "InvalidOutput",
        "LLMProdError",
        "MissingKey",
        "NoUsableKey",
        "NotCached",
        "NotFound",
        "Overloaded",
        "PermissionDenied",
        "PriceUnknown",
        "ProtocolError",
        "ProviderError",
        "QuotaExhausted",
        "RateLimitExceeded",
        "RateLimited",
        "ReadError",
        "Rejected",
        "RunawayAnswer",
        "ServerError",
        "Shed",
        "StoreUnavailable",
        "StreamInterrupted",
        "StreamTooSlow",
        "TransportError",
        "TruncatedAnswer",
        "UnsupportedParameter",
    ),
    "events": (
        "Event",
        "Finish",
        "Item",
        "PartDone",
        "RefusalDelta",
        "Reset",
        "Seam",
        "Start",
        "TextDelta",
        "ThinkingDelta",
        "TokenLogprob",
        "ToolCallDelta",
        "ToolCallDone",
        "UsageUpdate",
    ),
    "ledger": ("Ledger",),
    "mechanisms.adaptive_throttle": ("Throttle",),
    "mechanisms.answer_length": ("AnswerLengths",),
    "mechanisms.backoff": ("Backoff",),
    "mechanisms.balancing": (
        "BalancePolicy",
        "PowerOfTwo",
        "Priority",
        "Weighted",
    ),
    "mechanisms.budget": ("BudgetLimit",),
    "mechanisms.budget_store": ("BudgetStore",),
    "mechanisms.cache_key": ("normalised_prompt",),
    "mechanisms.cache_ledger": ("PromptCacheStats",),
    "mechanisms.cache_prices": (
        "CachePrices",
        "break_even_reads",
        "cached_content_saves",
    ),
    "mechanisms.circuit_breaker": (
        "Breaker",
        "BreakerOptions",
        "BreakerState",
    ),
    "mechanisms.concurrency_limit": (
        "AIMDLimit",
        "ConcurrencyLimit",
        "ConcurrencyPermit",
        "FixedLimit",
        "QueueLimit",
    ),
    "mechanisms.engine_meter": ("EngineStats",),
    "mechanisms.gradient2": ("Gradient2",),
    "mechanisms.key_ring": (
        "KeyRing",
        "QuotaGroup",
    ),
    "mechanisms.latency_window": ("LatencyWindow",),
    "mechanisms.limit_store": (
        "Limit",
        "LimitStore",
        "Limits",
    ),
    "mechanisms.peak_ewma": ("PeakEwma",),
    "mechanisms.prefix_chain": ("prefix_order",),
    "mechanisms.prefix_lint": (
        "PrefixFinding",
        "prefix_lint",
    ),
    "mechanisms.rate_limit": ("RateLimiter",),
    "mechanisms.restart": ("RestartPolicy",),
    "mechanisms.resume_plan": (
        "ContinueText",
        "Restart",
        "SynthesizeToolUse",
        "TruncateBeforeTool",
    ),
    "mechanisms.retry_budget": ("RetryBudget",),
    "mechanisms.sticky": ("Sticky",),
    "mechanisms.token_estimate": ("TokenEstimate",),
    "mechanisms.warmth": ("Warmth",),
    "presets": (
        "local_first",
        "standard",
    ),
    "pricing": (
        "Price",
        "PriceBook",
    ),
    "provider": (
        "BaseProvider",
        "Capabilities",
        "Provider",
    ),
    "providers._http": ("HTTPOptions",),
    "providers._vllm.completion_stream": ("CompletionStream",),
    "providers._vllm.engine": ("EngineState",),
    "providers._vllm.incarnation": ("StartTimes",),
    "providers._vllm.options": ("EngineOptions",),
    "providers._vllm.records": (
        "DraftModel",
        "Eagle",
        "LoRA",
        "MTP",
        "Medusa",
        "NGram",
        "Parallel",
        "Speculative",
        "StructuredOutputs",
    ),
    "providers._vllm.sampling": (
        "Sampling",
        "Structured",
    ),
    "providers._vllm.token_records": (
        "Classified",
        "Completion",
        "CompletionChoice",
        "CompletionDelta",
        "Ranked",
        "Score",
        "ScoredToken",
    ),
    "providers.anthropic": ("Anthropic",),
    "providers.google": ("Google",),
    "providers.openai": ("OpenAI",),
    "providers.openai_compatible": (
        "OpenAICompatible",
        "Profile",
    ),
    "providers.simulated": ("Simulated",),
    "providers.static": ("Static",),
    "providers.vllm": ("VLLM",),
    "record": (
        "CallRecord",
        "capture",
    ),
    "request": (
        "EmbedRequest",
        "GenerateRequest",
        "Request",
    ),
    "response": (
        "Cached",
        "EngineTiming",
        "EventSource",
        "Outcome",
        "Response",
        "Timing",
        "WrappedSource",
    ),
    "schema": (
        "OutputSchema",
        "Tool",
    ),
    "store": ("Store",),
    "stores.disk": ("DiskStore",),
    "stores.disk_budgets": ("DiskBudgets",),
    "stores.encrypted": ("Encrypted",),
    "stores.memory": (
        "MemoryStats",
        "MemoryStore",
    ),
    "stores.redis": ("RedisLimits",),
    "stores.redis_budgets": ("RedisBudgets",),
    "stores.redis_store": ("RedisStore",),
    "sync_response": ("SyncResponse",),
    "tokens": (
        "TokenCount",
        "TokenCounter",
        "TokenError",
        "count_tokens",
        "count_tokens_async",
        "default_counter",
    ),
    "trace": (
        "Attempt",
        "AttemptEnd",
        "Trace",
    ),
    "types": (
        "Audio",
        "File",
        "Image",
        "Message",
        "Opaque",
        "Part",
        "Refusal",
        "Text",
        "Thinking",
        "ToolCall",
        "ToolResult",
    ),
    "usage": (
        "FinishReason",
        "Usage",
    ),
    "verdict": (
        "Action",
        "Classifier",
        "Verdict",
        "classify",
    ),
    "wrapper": (
        "Phase",
        "Stack",
        "StackOrderWarning",
        "WrappedProvider",
        "Wrapper",
        "deployment",
        "describe",
        "lint",
    ),
    "wrappers._memory_budgets": ("MemoryBudgets",),
    "wrappers.adaptive_throttle": ("AdaptiveThrottle",),
    "wrappers.attempt_timeout": ("AttemptTimeout",),
    "wrappers.balance": ("Balance",),
    "wrappers.budget": (
        "Budget",
        "BudgetState",
    ),
    "wrappers.bulkhead": ("Bulkhead",),
    "wrappers.cache": (
        "Cache",
        "CacheStats",
    ),
    "wrappers.chaos": ("Chaos",),
    "wrappers.cheapest": ("Cheapest",),
    "wrappers.circuit_breaker": ("CircuitBreaker",),
    "wrappers.context_window": ("ContextWindow",),
    "wrappers.cost_meter": ("CostMeter",),
    "wrappers.deadline": ("Deadline",),
    "wrappers.failover": ("Failover",),
    "wrappers.hedge": ("Hedge",),
    "wrappers.key_pool": ("KeyPool",),
    "wrappers.max_tokens": ("MaxTokens",),
    "wrappers.overflow": ("Overflow",),
    "wrappers.prompt_caching": ("PromptCaching",),
    "wrappers.rate_limit": ("RateLimit",),
    "wrappers.resume": ("Resume",),
    "wrappers.retry": ("Retry",),
    "wrappers.service_tier": ("ServiceTier",),
    "wrappers.throughput_guard": ("ThroughputGuard",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE)]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("llmprod")
        except PackageNotFoundError:
            return "unknown"  # run from a source tree that is not installed
    module = _MODULE.get(name)
    if module is None:
        raise AttributeError(f"module 'llmprod' has no attribute {name!r}")
    # The wrapper modules share their names with nothing public, so the value may be kept as the attribute.
    value = getattr(import_module(f"llmprod.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
