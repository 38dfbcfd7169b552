"""What is known of the vendors that people add by name: `kaixu vendor add groq --key-file -`.

Pure data, shared with the control plane. Base URLs are as one gives them to the SDK of that kind.
`usage_unasked` is claimed only where recorded streams show it: a vendor that is asked without need
loses nothing, one that is not asked in spite of it would be metered as unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

# For servers on one's own machine, which take any key. Too short to be masked in what they answer.
PLACEHOLDER_KEY: Final = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a known vendor's name stands for.

    `base_url` is empty where each account has its own. `is_private`: it runs on this machine, over
    http, and needs no key.
    """

    kind: str
    base_url: str
    usage_unasked: bool = False
    is_private: bool = False


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "openai": Preset(kind="openai", base_url="https://api.openai.com/v1"),
        "anthropic": Preset(kind="anthropic", base_url="https://api.anthropic.com"),
        "gemini": Preset(kind="gemini", base_url="https://generativelanguage.googleapis.com"),
        "mistral": Preset(kind="openai", base_url="https://api.mistral.ai/v1", usage_unasked=True),
        "groq": Preset(
            kind="openai", base_url="https://api.groq.com/openai/v1", usage_unasked=True
        ),
        "deepseek": Preset(kind="openai", base_url="https://api.deepseek.com", usage_unasked=True),
        "xai": Preset(kind="openai", base_url="https://api.x.ai/v1"),
        "openrouter": Preset(kind="openai", base_url="https://openrouter.ai/api/v1"),
        "cerebras": Preset(kind="openai", base_url="https://api.cerebras.ai/v1"),
        "perplexity": Preset(
            kind="openai", base_url="https://api.perplexity.ai", usage_unasked=True
        ),
        "together": Preset(kind="openai", base_url="https://api.together.xyz/v1"),
        "fireworks": Preset(kind="openai", base_url="https://api.fireworks.ai/inference/v1"),
        "cohere": Preset(kind="cohere", base_url="https://api.cohere.com"),
        "azure": Preset(kind="azure", base_url=""),
        "bedrock": Preset(kind="bedrock", base_url=""),
        "vertex": Preset(kind="vertex", base_url="https://aiplatform.googleapis.com"),
        "voyage": Preset(kind="openai", base_url="https://api.voyageai.com/v1"),
        "huggingface": Preset(kind="openai", base_url="https://router.huggingface.co/v1"),
        "zai": Preset(kind="openai", base_url="https://api.z.ai/api/paas/v4"),
        "alibaba": Preset(
            kind="openai", base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1"
        ),
        "ollama": Preset(kind="openai", base_url="http://127.0.0.1:11434/v1", is_private=True),
        "ollama-native": Preset(kind="ollama", base_url="http://127.0.0.1:11434", is_private=True),
        "vllm": Preset(kind="openai", base_url="http://127.0.0.1:8000/v1", is_private=True),
        "lmstudio": Preset(kind="openai", base_url="http://127.0.0.1:1234/v1", is_private=True),
    }
)

# What the base URL looks like where each account, or each region, has its own.
BASE_URL_FORMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "azure": "https://RESOURCE.openai.azure.com, or https://RESOURCE.services.ai.azure.com.",
        "bedrock": "https://bedrock-runtime.REGION.amazonaws.com.",
        "vertex": "https://aiplatform.googleapis.com, or https://REGION-aiplatform.googleapis.com; "
        "with /v1/projects/PROJECT/locations/REGION behind it, no other is served.",
    }
)
